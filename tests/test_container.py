"""The container: lossless for every tensor, closed to every damaged or hostile file."""

import tracemalloc
import zlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hostile import files, forged, mutated, parts
from house import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from old_container import encode_v1

from delib.coding import container_v1
from delib.coding.container import DTYPES, MAGIC, DelibError, LevelTensor, decode, encode, read, sizes, write

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9)


@st.composite
def level_tensors(draw: st.DrawFn) -> LevelTensor:
    mask = draw(hnp.arrays(bool, draw(SHAPES)))
    stored = draw(st.sampled_from([np.float32, np.float16]))
    codebook = draw(hnp.arrays(stored, st.integers(1, 17))).astype(np.float32)
    indices = draw(hnp.arrays(np.uint8, int(mask.sum()), elements=st.integers(0, len(codebook) - 1)))
    scales = draw(st.none() | hnp.arrays(np.float16, len(mask)))
    return LevelTensor(mask, indices, codebook, scales)


PLAIN = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("write", [encode, encode_v1])
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.one_of(level_tensors(), PLAIN), max_size=4))
def test_what_is_decoded_is_bit_for_bit_what_was_encoded(write, tensors: dict) -> None:
    decoded = decode(write(tensors))
    assert list(decoded) == list(tensors)
    for name, tensor in tensors.items():
        other = decoded[name]
        if isinstance(tensor, LevelTensor):
            assert isinstance(other, LevelTensor)
            assert (other.scales is None) == (tensor.scales is None)
            assert tensor.scales is None or same_bits(other.scales, tensor.scales)
            assert same_bits(other.mask, tensor.mask)
            assert same_bits(other.codebook, tensor.codebook)
            assert np.array_equal(other.indices, tensor.indices)
        else:
            assert isinstance(other, np.ndarray)
            assert same_bits(other, tensor)


def dense_sizes(tensor: LevelTensor) -> np.ndarray:
    sizes = np.zeros(tensor.mask.shape, np.int32)
    sizes[tensor.mask] = tensor.indices + 1
    return sizes


@pytest.mark.parametrize("name", ["fc1.weight", "fc2.weight", "conv2.weight"])
def test_a_tensor_is_coded_from_whichever_side_is_shorter(name: str) -> None:
    """Turned by hand it takes as many bytes, to the one that says so, and both come back."""
    tensor = read(ROOT / "data" / "students" / "lenet5.delib")[name]
    assert isinstance(tensor, LevelTensor)
    turned = np.ascontiguousarray(dense_sizes(tensor).swapaxes(0, 1))
    other = LevelTensor(turned > 0, (turned[turned > 0] - 1).astype(tensor.indices.dtype), tensor.codebook)
    files_of = [encode({"w": each}) for each in (replace(tensor, scales=None), other)]
    assert abs(len(files_of[0]) - len(files_of[1])) <= 4
    back = [decode(data)["w"] for data in files_of]
    assert np.array_equal(dense_sizes(back[0]), dense_sizes(tensor))
    assert np.array_equal(dense_sizes(back[1]), turned)


def random_tensor(rows: int = 200, columns: int = 300, density: float = 0.1, levels: int = 16) -> LevelTensor:
    rng = np.random.default_rng(0)
    mask = rng.random((rows, columns)) < density
    codebook = np.sort(rng.normal(size=levels)).astype(np.float32)
    return LevelTensor(mask, rng.integers(0, levels, mask.sum()).astype(np.uint8), codebook)


def test_size_is_near_the_entropy_of_mask_and_indices() -> None:
    tensor = random_tensor(1000, 1000)
    p = tensor.mask.mean()
    entropy = tensor.mask.size * -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) + len(tensor.indices) * 4
    assert len(encode({"w": tensor})) < 1.01 * entropy / 8 + 300


def test_columns_that_die_together_cost_less_than_scattered_deaths() -> None:
    tensor = random_tensor(300, 784, levels=1)
    together = tensor.mask[:, np.argsort(tensor.mask.sum(0))] & (np.arange(784) >= 392)
    scattered = np.random.default_rng(1).permutation(together.ravel()).reshape(together.shape)
    indices = tensor.indices[: together.sum()]
    coded = [len(encode({"w": LevelTensor(m, indices, tensor.codebook)})) for m in (together, scattered)]
    assert coded[0] < 0.85 * coded[1]


def test_extreme_masks_stay_within_the_bound_that_reading_enforces() -> None:
    for fill in (True, False):
        mask = np.full((500, 4000), fill)
        tensor = LevelTensor(mask, np.zeros(mask.sum(), np.uint8), np.ones(1, np.float32))
        decoded = decode(encode({"w": tensor}))["w"]
        assert isinstance(decoded, LevelTensor)
        assert np.array_equal(decoded.mask, mask)


FILE = encode({"w": random_tensor(), "b": np.arange(5, dtype=np.float32)})


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused(position: int, flip: int) -> None:
    damaged = bytearray(FILE)
    damaged[position] ^= flip
    with pytest.raises(DelibError):
        decode(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(FILE) - 1))
def test_a_cut_tail_is_refused(length: int) -> None:
    with pytest.raises(DelibError):
        decode(FILE[:length])


def test_scales_multiply_the_levels_of_their_output() -> None:
    tensor = LevelTensor(
        np.array([[True, False], [True, True]]),
        np.array([0, 1, 0], np.uint8),
        np.array([-1, 2], np.float32),
        np.array([0.5, 3], np.float16),
    )
    assert np.array_equal(tensor.dense(), [[-0.5, 0], [6, -3]])


def test_constants_cost_next_to_nothing() -> None:
    assert len(encode({"mean": np.zeros(4096, np.float32), "var": np.ones(4096, np.float32)})) < 250


def test_what_inflates_to_another_size_than_claimed_is_refused() -> None:
    bomb = zlib.compress(bytes(1 << 20), 9)
    entry = {"name": "b", "dtype": "uint8", "packed": "deflate", "bytes": len(bomb)}
    for claim, payload in ((1000, bomb), (1 << 20, bomb[:-9] + bytes(9)), ((1 << 20) + 1, bomb)):
        with pytest.raises(DelibError):
            decode(forged([{**entry, "shape": [claim]}], payload))
    assert decode(forged([{**entry, "shape": [1 << 20]}], bomb))["b"].shape == (1 << 20,)


LEVELS = {"name": "w", "shape": [4, 4], "bytes": 12, "levels": 1, "survivors": 8, "scaled": False}


@pytest.mark.parametrize(
    "entries",
    [
        [{**LEVELS, "shape": [1 << 20, 1 << 20]}],
        [{**LEVELS, "shape": [1 << 39, 1 << 39, 1 << 39]}],
        [{**LEVELS, "shape": [-4, -4]}],
        [{**LEVELS, "shape": []}],
        [{**LEVELS, "shape": [True, 4]}],
        [{**LEVELS, "shape": [4.0, 4]}],
        [{**LEVELS, "shape": [1] * 9}],
        [{**LEVELS, "survivors": 1 << 50}],
        [{**LEVELS, "survivors": 17}],
        [{**LEVELS, "survivors": -17}],
        [{**LEVELS, "shape": [16], "survivors": -8}],
        [{**LEVELS, "levels": 5}],
        [{**LEVELS, "levels": 0}],
        [{**LEVELS, "levels": 1 << 17}],
        [{**LEVELS, "scaled": 1}],
        [{**LEVELS, "name": 3}],
        [{**LEVELS, "name": "a\nb", "levels": 5}],
        [{**LEVELS, "more": 3}],
        [{**LEVELS, "shape": [9, 1], "scaled": True}],
        [LEVELS, LEVELS],
        [LEVELS, {"name": "v", "same": "x"}],
        [LEVELS, {"name": "v", "same": "v"}],
        [{"name": "b", "shape": [1 << 35], "bytes": 12, "dtype": "float32", "packed": "deflate"}],
        [{"name": "b", "shape": [3], "bytes": 12, "dtype": "object", "packed": "deflate"}],
        [{"name": "b", "shape": [1 << 35], "bytes": 12, "dtype": "float32"}],
        [{"name": "b", "shape": [3], "bytes": 12, "dtype": "object"}],
        [{"name": "b", "shape": [3], "bytes": -12, "dtype": "float32"}],
        [{"name": "b", "shape": [3]}],
        {"name": "b"},
        7,
    ],
)
def test_absurd_claims_are_refused_in_one_line_and_without_allocation(entries: object) -> None:
    data = forged(entries, b"\0" * 12)
    tracemalloc.start()
    with pytest.raises(DelibError) as refusal:
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("magic", [MAGIC, container_v1.MAGIC])
@pytest.mark.parametrize(
    "text", [b" " * (64 << 20), b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b"[" + b"1" * 9000, b"\xff"]
)
def test_a_header_that_is_a_bomb_or_no_json_is_refused(text: bytes, magic: bytes) -> None:
    data = forged(None, b"", magic, text)
    tracemalloc.start()
    with pytest.raises(DelibError) as refusal:
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 << 20
    assert "\n" not in str(refusal.value)


def test_random_payloads_under_a_good_checksum_never_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        entry = {**LEVELS, "shape": [40, 40], "levels": 2, "survivors": 500, "bytes": 208}
        try:
            decode(forged([entry], rng.bytes(208)))
        except DelibError:
            continue


def test_reading_names_the_file(tmp_path) -> None:
    path = tmp_path / "student.delib"
    assert write(path, {"b": np.ones(3)}) == path.stat().st_size
    assert np.array_equal(read(path)["b"], np.ones(3))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DelibError, match=r"student\.delib"):
        read(path)


def test_sizes_account_for_the_file() -> None:
    assert sizes(FILE)["b"] == 20
    assert 0 < len(FILE) - sum(sizes(FILE).values()) < 300


def test_a_dtype_that_cannot_be_held_is_named() -> None:
    with pytest.raises(ValueError, match="complex128"):
        encode({"z": np.zeros(2, complex)})


@pytest.mark.parametrize(
    "parts",
    [
        (np.ones((2, 2), bool), np.zeros(3, np.uint8), np.zeros(1, np.float32)),
        (np.ones((2, 2), bool), np.ones(4, np.uint8), np.zeros(1, np.float32)),
        (np.ones((2, 2)), np.zeros(4, np.uint8), np.zeros(1, np.float32)),
        (np.ones((2, 2), bool), np.zeros(4, np.uint8), np.zeros(1)),
        (np.ones((2, 2), bool), np.zeros(4, np.uint8), np.zeros(1, np.float32), np.zeros(3, np.float16)),
        (np.ones((2, 2), bool), np.zeros(4, np.uint8), np.zeros(1, np.float32), np.zeros(2, np.float32)),
    ],
)
def test_an_inconsistent_level_tensor_is_refused(parts) -> None:
    with pytest.raises(ValueError, match=r"mask|indices|index|codebook|scales"):
        LevelTensor(*parts)


@pytest.mark.parametrize("seed", range(4))
def test_files_made_to_do_harm_are_decoded_or_refused_in_one_line(seed: int) -> None:
    chance, good = Random(seed), files()
    for _ in range(250):
        data = mutated(chance.choice(good), chance)
        try:
            decode(data)
        except DelibError as error:
            assert len(str(error).splitlines()) == 1, str(error)


@pytest.mark.parametrize("write", [encode, encode_v1])
def test_no_byte_stands_for_more_than_1024_weights(write) -> None:
    tensor = random_tensor(40, 50, density=0.5, levels=2)
    magic, (entry,), payload = parts(write({"w": tensor}))
    room = 1024 * (len(payload) + 16)
    for shape in ([1, room + 1], [room + 1, 1], [room // 100 + 1, 100]):
        tracemalloc.start()
        with pytest.raises(DelibError, match=r"cannot hold|do not agree"):
            decode(forged([{**entry, "shape": shape}], payload, magic))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20


def test_survivors_count_for_the_time_that_they_take() -> None:
    tensor = random_tensor(40, 50, density=0.5, levels=2)
    _, (entry,), payload = parts(encode({"w": tensor}))
    many = 1024 * (len(payload) + 16) // 16  # which, as zeros, these bytes could stand for
    with pytest.raises(DelibError, match="cannot hold"):
        decode(forged([{**entry, "shape": [many, 1], "survivors": many}], payload))
    alike = LevelTensor(np.ones((300, 200), bool), np.zeros(60000, np.uint8), np.ones(1, np.float32))
    decoded = decode(encode({"w": alike}))["w"]
    assert isinstance(decoded, LevelTensor) and decoded.mask.all(), "a weight all alike, which costs next to nothing"


def test_nearly_empty_layers_are_filled_up_to_what_reading_asks_for() -> None:
    mask = np.zeros((3000, 1000), bool)
    mask[1234, 567] = True
    tensor = LevelTensor(mask, np.zeros(1, np.uint8), np.ones(1, np.float32))
    data = encode({"w": tensor})
    assert mask.size / 1024 < len(data) < mask.size / 1024 + 200
    decoded = decode(data)["w"]
    assert isinstance(decoded, LevelTensor)
    assert np.array_equal(decoded.mask, mask)


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (10, 20), (6, 1, 5, 5), (16, 6, 3, 3)])
@pytest.mark.parametrize("levels", [1, 4, 16])
def test_tiny_tensors_are_no_larger_than_version_1_made_them(shape: tuple[int, ...], levels: int) -> None:
    chance, ours, theirs = np.random.default_rng(0), 0, 0
    for _ in range(20):
        mask = chance.random(shape) < 0.3
        indices = chance.integers(0, levels, int(mask.sum())).astype(np.uint8)
        tensor = LevelTensor(mask, indices, np.sort(chance.normal(size=levels)).astype(np.float32))
        ours += len(encode({"w": tensor}))
        theirs += len(encode_v1({"w": tensor}))
    assert ours <= theirs


@pytest.mark.parametrize("left", [[-1, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [-1, -2, -3, -4, -5, 1]])
def test_a_level_that_no_codebook_has_is_refused(left: list[float]) -> None:
    tensor = random_tensor(40, 50, density=0.5, levels=16)
    _, (entry,), payload = parts(encode({"w": tensor}))
    stream = payload[4 * 16 :]
    entry |= {"levels": len(left), "bytes": 4 * len(left) + len(stream)}
    data = forged([entry], np.float32(left).tobytes() + stream)
    with pytest.raises(DelibError, match="undecodable"):
        decode(data)


def test_version_1_s_shipped_student_still_decodes() -> None:
    data = (ROOT / "data" / "students" / "yolov3-tiny-s90-b4.delib").read_bytes()
    decoded = decode(data)
    weights = [tensor for tensor in decoded.values() if isinstance(tensor, LevelTensor)]
    assert sum(tensor.mask.size for tensor in weights) == 8_845_488
    again = decode(encode(decoded))
    assert all(
        np.array_equal(tensor.dense(), again[name].dense())
        for name, tensor in decoded.items()
        if hasattr(tensor, "dense")
    )
