"""Pickled checkpoints: tensors come back, nothing of them runs, and what no honest author writes is refused."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import named, small, write
from hypothesis import given
from hypothesis import strategies as st

from delib.detection import checkpoint as module
from delib.detection.checkpoint import Checkpoint, Stub, unpickled
from delib.detection.yolov5 import is_yolov5, load_yolov5

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner)
    ),
)


@given(values, st.sampled_from([2, 3, 4, 5]))
def test_numbers_texts_and_containers_are_as_pickle_reads_them(value: Any, protocol: int) -> None:
    code = pickle.dumps(value, protocol)
    if b"_codecs" not in code and b"__builtin__" not in code:  # which protocol 2 calls to make bytes
        assert unpickled(code) == value


class Trap:
    """Would make a folder if it were unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("sprung",)


class Stateful:
    """Would make one when it is given its state."""

    def __setstate__(self, state: Any) -> None:
        os.mkdir("sprung")

    def __getstate__(self) -> Any:
        return {"command": "mkdir sprung"}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("trap", [Trap(), Stateful(), {"a": [Trap()]}, OrderedDict(a=(Stateful(),))])
def test_nothing_is_called(trap: Any, protocol: int, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = unpickled(pickle.dumps(trap, protocol))
    assert not list(tmp_path.iterdir())
    if isinstance(trap, Trap):
        assert found == Stub(f"{os.mkdir.__module__}.mkdir", ("sprung",))
    if isinstance(trap, Stateful):
        assert found.get("command") == "mkdir sprung"


def test_by_names_of_any_kind_nothing_is_imported(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "surprise.py").write_text("raise SystemExit('imported')")
    for code in (b"csurprise\nanything\n.", b"\x80\x04\x8c\x08surprise\x8c\x08anything\x93.", b"cos.path\njoin\n)R."):
        assert isinstance(unpickled(code), Stub)


def frame(code: bytes) -> bytes:
    return b"\x80\x02" + code


BROKEN = {
    "an empty stack": frame(b"0."),
    "a memo that was never put": frame(b"h\x07."),
    "a memo at a huge number": frame(b"Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff."),
    "a text longer than the file": frame(b"X\xff\xff\xff\x7fabc."),
    "bytes longer than any file": b"\x80\x04" + b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "a number of many digits": frame(b"I" + b"9" * 9000 + b"\n."),
    "no mark": frame(b"t."),
    "no end": frame(b"N"),
    "an opcode of no checkpoint": frame(b"(i" + b"os\nsystem\n."),
    "an extension's number": frame(b"\x82\x01."),
    "a set": b"\x80\x04\x8f.",
    "keys without values": frame(b"}(K\x01u."),
    "a tuple as a key": frame(b"}K\x01\x85K\x02s."),
    "a name that is no text": b"\x80\x04]K\x01\x93.",
    "a name of three words": frame(b"cos\n"),
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_broken_pickles_are_refused_at_once(code: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"."):
        unpickled(code)
    assert time.perf_counter() - start < 1


def test_what_is_nested_deeply_is_read_and_forgotten() -> None:
    deep = unpickled(frame(b"]" * 30_000 + b"a" * 29_999 + b"."))
    assert isinstance(deep, list)
    assert isinstance(unpickled(frame(b"N" + b"\x85" * 30_000 + b".")), tuple)
    with pytest.raises(ValueError, match="key"):
        unpickled(frame(b"}N" + b"\x85" * 30_000 + b"Ns."))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(code: bytes) -> None:
    try:
        unpickled(frame(code))
    except ValueError as refusal:
        assert "\n" not in str(refusal) or "pickle" not in str(refusal)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.pt"
    write(path, small())
    return path


def test_tensors_are_those_of_the_state_dict(good: Path) -> None:
    checkpoint, expected = Checkpoint(good), small().state_dict()
    state = checkpoint.state()
    assert checkpoint.kind == "models.yolo.SegmentationModel"
    assert state.keys() - expected.keys() == {"model.9.anchors"}
    assert state.keys() >= expected.keys()
    for name, tensor in expected.items():
        held = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(state[name], held), name


def changed(good: Path, path: Path, old: bytes, new: bytes, times: int = 1) -> Path:
    """The checkpoint with bytes of its pickle replaced."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl"):
                assert old in content
                content = content.replace(old, new, times)
            target.writestr(name, content)
    return path


def packed(path: Path, root: object, name: str = "archive/data.pkl", **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, root if isinstance(root, bytes) else pickle.dumps(root, 2))
    return path


def test_files_that_are_no_checkpoint_are_refused_in_one_line(good: Path, tmp_path, monkeypatch) -> None:
    (tmp_path / "junk.pt").write_bytes(b"hello" * 99)
    (tmp_path / "short.pt").write_bytes(good.read_bytes()[:-900])
    (tmp_path / "empty.pt").write_bytes(b"")
    packed(tmp_path / "none.pt", {"model": None})
    packed(tmp_path / "list.pt", [1])
    packed(tmp_path / "trap.pt", {"model": Trap()})
    packed(tmp_path / "elsewhere.pt", {}, "archive/other.pkl")
    packed(tmp_path / "bomb.pt", b"\0" * 9_000_000, compression=zipfile.ZIP_DEFLATED)
    packed(tmp_path / "large.pt", b"N" * (module.MAX_PICKLE + 1))
    monkeypatch.chdir(tmp_path)
    for path in sorted(tmp_path.glob("*.pt")):
        with pytest.raises(ValueError, match=f"{path.name}: no checkpoint") as refusal:
            Checkpoint(path)
        assert "\n" not in str(refusal.value)
        assert not is_yolov5(path)
    assert not (tmp_path / "sprung").exists()


def test_tensors_beyond_their_storage_are_refused(good: Path, tmp_path) -> None:
    first = Checkpoint(good).state()["model.0.conv.weight"]
    shape = b"(" + b"".join(b"K" + bytes([n]) for n in first.shape)
    for i, wrong in enumerate(
        (b"(K\xffK\xffK\xffK\xff", b"(J\xff\xff\xff\xffK\x03K\x06K\x06", b"(NNNN", b"(K\x08K\x03K\x06X\x01\0\0\0a")
    ):
        path = changed(good, tmp_path / f"{i}.pt", shape, wrong)
        with pytest.raises(ValueError, match=f"{i}.pt") as refusal:
            load_yolov5(path)
        assert "\n" not in str(refusal.value)


def test_storages_of_other_sizes_or_none_are_refused(good: Path, tmp_path) -> None:
    with zipfile.ZipFile(good) as source:
        names = [name for name in source.namelist() if "/data/" in name]
        for i, cut in enumerate((lambda content: content[:-1], lambda content: content + b"12", lambda content: None)):
            path = tmp_path / f"{i}.pt"
            with zipfile.ZipFile(path, "w") as target:
                for name in source.namelist():
                    content = cut(source.read(name)) if name == names[0] else source.read(name)
                    if content is not None:
                        target.writestr(name, content)
            with pytest.raises(ValueError, match=f"{i}.pt") as refusal:
                Checkpoint(path).state()
            assert "\n" not in str(refusal.value)


def test_entries_that_share_their_bytes_are_refused(good: Path, tmp_path) -> None:
    """As archives do that hold a thousand times what they take."""
    with zipfile.ZipFile(good) as source:
        entry = max(source.infolist(), key=lambda entry: entry.file_size)
        content = {info.filename: source.read(info) for info in source.infolist()}
    path = tmp_path / "many.pt"
    with zipfile.ZipFile(path, "w") as target:
        for name, body in content.items():
            target.writestr(name, body)
        last = target.getinfo(entry.filename)
        for i in range(100):
            twin = zipfile.ZipInfo(f"archive/data/twin{i}")
            twin.header_offset, twin.CRC = last.header_offset, last.CRC
            twin.file_size = twin.compress_size = last.file_size
            target.filelist.append(twin)
            target.NameToInfo[twin.filename] = twin
        target._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"many\.pt.*overlap"):
        Checkpoint(path)


def test_modules_within_themselves_end(tmp_path) -> None:
    class Foreign(torch.nn.Module):
        pass

    own, deep = Foreign(), Foreign()
    own._modules["own"] = own
    inner = deep
    for _ in range(40):
        inner._modules["inner"] = Foreign()
        inner = inner._modules["inner"]
    with named(Foreign, "models.yolo.SegmentationModel"):
        torch.save({"model": own}, tmp_path / "own.pt")
        torch.save({"model": deep}, tmp_path / "deep.pt")
    assert Checkpoint(tmp_path / "own.pt").state() == {}
    with pytest.raises(ValueError, match=r"deep\.pt.*deeper than 32"):
        Checkpoint(tmp_path / "deep.pt").state()
    for name in ("own", "deep"):
        with pytest.raises(ValueError, match=rf"{name}\.pt") as refusal:
            load_yolov5(tmp_path / f"{name}.pt")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("seed", range(30))
def test_a_pickle_with_bytes_changed_is_read_or_refused(good: Path, tmp_path, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    with zipfile.ZipFile(good) as source:
        content = bytearray(
            source.read("good/data.pkl" if "good/data.pkl" in source.namelist() else "archive/data.pkl")
        )
        for _ in range(4):
            at, value = (int(torch.randint(n, (), generator=chance)) for n in (len(content), 256))
            content[at] = value
        path = tmp_path / "changed.pt"
        with zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(name, bytes(content) if name.endswith("/data.pkl") else source.read(name))
    try:
        load_yolov5(path)
    except ValueError as refusal:
        assert "\n" not in str(refusal)
        assert "changed.pt" in str(refusal)


def test_archives_are_only_read(good: Path) -> None:
    before = good.read_bytes()
    Checkpoint(good).state()
    assert good.read_bytes() == before
    assert zipfile.ZipFile(io.BytesIO(before)).testzip() is None
