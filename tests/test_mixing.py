"""The walk: the machine code does what the Python does, near the entropy, on a read-only installation, too."""

import os
import shutil
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from format_decoder import decode_file
from house import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from delib.coding import LevelTensor, decode, encode, mixing
from delib.coding.header import DICTIONARY

SHAPES = st.sampled_from(
    [(7,), (5, 6), (3, 2, 3, 3), (2, 3, 1, 1), (4, 3, 2, 5), (2, 2, 7), (1, 1, 1, 1), (3, 1, 4, 1, 2)]
)


@st.composite
def signed_weights(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    mask = draw(hnp.arrays(bool, draw(SHAPES)))
    largest = draw(st.sampled_from((1, 2, 3, 8, 15, 300)))
    sizes = draw(hnp.arrays(np.int32, int(mask.sum()), elements=st.integers(1, largest)))
    signs = draw(hnp.arrays(np.int32, int(mask.sum()), elements=st.sampled_from((-1, 1))))
    return mask, sizes * signs, largest


@settings(max_examples=60, deadline=None)
@given(signed_weights())
def test_the_compiled_walk_writes_and_reads_what_plain_python_does(weight) -> None:
    mask, levels, largest = weight
    stream = mixing.encoded(mask, levels, largest, mixing.walk)
    assert stream == mixing.encoded(mask, levels, largest)
    for run in (mixing.walk, mixing.compiled()):
        found = mixing.decoded(stream, mask.shape, len(levels), largest, run)
        assert found is not None
        assert np.array_equal(found[0], mask)
        assert np.array_equal(found[1], levels)


def test_the_tables_are_the_logistic_function_and_its_inverse() -> None:
    exact = [Decimal(65536) / (1 + (-Decimal(x) / 256).exp()) for x in range(-mixing.REACH, mixing.REACH + 1)]
    assert max(abs(a - int(b)) for a, b in zip(exact, mixing.SQUASH, strict=True)) < 1.1
    middles = (np.arange(4096) + 0.5) / 4096
    assert np.abs(mixing.STRETCH[1:-1] / 256 - np.log(middles / (1 - middles))[1:-1]).max() < 0.07


@pytest.mark.parametrize(("share", "length"), [(0.5, 20_000), (0.1, 50_000), (0.001, 200_000)])
def test_independent_decisions_cost_their_entropy(share: float, length: int) -> None:
    mask = np.random.default_rng(0).random((length // 100, 100)) < share
    stream = mixing.encoded(mask, np.ones(int(mask.sum()), np.int32), 1)
    p = mask.mean()
    bits = mask.size * -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert bits / 8 < len(stream) < 1.03 * bits / 8 + 40


def test_kernels_that_are_alike_cost_less_than_scattered_weights() -> None:
    chance = np.random.default_rng(0)
    kernels = chance.random((60, 50, 1)) < 0.2
    mask = np.broadcast_to(kernels, (60, 50, 9)) & (chance.random((60, 50, 9)) < 0.6)
    scattered = chance.permutation(mask.ravel()).reshape(mask.shape)
    ones = np.ones(int(mask.sum()), np.int32)
    assert len(mixing.encoded(mask, ones, 1)) < 0.85 * len(mixing.encoded(scattered, ones, 1))


def test_ten_million_weights_of_which_one_in_a_thousand_survives_come_back() -> None:
    mask = np.random.default_rng(0).random((2500, 4000)) < 0.001
    ones = np.ones(int(mask.sum()), np.int32)
    stream = mixing.encoded(mask, ones, 1)
    found = mixing.decoded(stream, mask.shape, len(ones), 1)
    assert found is not None
    assert np.array_equal(found[0], mask)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(stream: bytes, survivors: int) -> None:
    found = mixing.decoded(stream, (4, 5, 3), survivors, 5)
    assert found is None or found[0].sum() == len(found[1]) == survivors


def test_numba_is_not_imported_before_something_is_coded() -> None:
    code = "import sys, delib, delib.coding; delib.encode; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_an_installation_that_nobody_may_write_to_works(tmp_path) -> None:
    shutil.copytree(
        ROOT / "delib" / "coding", tmp_path / "delib" / "coding", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("__init__.py", "files.py"):
        shutil.copy(ROOT / "delib" / name, tmp_path / "delib" / name)
    # No folder can be made where a file lies, whoever asks: neither beside the module nor in the user's cache.
    (tmp_path / "delib" / "coding" / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    code = "import numpy as np\nfrom delib.coding.mixing import encoded\n"
    code += "print(len(encoded(np.eye(9) > 0, np.ones(9, np.int32), 1)))"
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**kept, **home}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40


@settings(max_examples=40, deadline=None)
@given(signed_weights(), st.booleans(), st.sampled_from([1.0, 1.0001]))
def test_a_decoder_written_from_the_format_s_page_reads_what_is_written(weight, scaled: bool, unit: float) -> None:
    mask, levels, largest = weight
    codebook = np.float32(unit) * np.float32([*range(-largest, 0), *range(1, largest + 1)])  # of either precision
    indices = np.where(levels < 0, levels + largest, levels + largest - 1).astype(np.uint16)
    tensor = LevelTensor(mask, indices, codebook, np.ones(len(mask), np.float16) if scaled else None)
    found = decode_file(encode({"first": tensor, "w": tensor, "b": np.ones(3), "v": mask}))
    assert list(found) == ["first"]
    assert np.array_equal(found["first"][0], mask)
    assert found["first"][1] == indices.tolist()


def test_the_format_s_page_has_the_whole_dictionary() -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    block = page.partition("**The dictionary**")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert "".join(line.removeprefix("    ") for line in block.splitlines()).encode() == DICTIONARY


def test_that_decoder_reads_a_real_layer() -> None:
    student = decode((ROOT / "data" / "students" / "yolov3-tiny-s90-b4.delib").read_bytes())
    for name in ("c2.weight", "c18.weight"):
        mask, indices = decode_file(encode({"w": student[name]}))["w"]
        assert np.array_equal(mask, student[name].mask)
        assert np.array_equal(indices, student[name].indices)
