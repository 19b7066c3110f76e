"""Data: verified, fetched again where damaged, never contacted for when present, clear when it cannot be had."""

import hashlib

import pytest

from delib.data.download import DataUnavailable, FileSet
from delib.data.images import FASHION_CLASSES, FASHION_MNIST_FILES, MNIST_FILES, fashion_mnist, mnist

CONTENT = {"a.bin": b"alpha", "b.bin": b"beta"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.delenv("DELIB_OFFLINE", raising=False)
    return tmp_path


class Source:
    """A source that delivers given contents and counts what it was asked for."""

    def __init__(self, content: dict[str, bytes] | None) -> None:
        self.content, self.asked = content, []

    def __call__(self, names):
        self.asked.append(list(names))
        if self.content is None:
            raise OSError("no route to host\nlong explanation")
        for name in names:
            yield name, self.content[name]


def files(**sources: Source) -> FileSet:
    return FileSet("toy", {n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()}, sources)


def test_present_files_contact_nothing() -> None:
    source = Source(CONTENT)
    files(first=source).fetch()
    again = Source(None)
    folder = files(first=again).fetch()
    assert again.asked == []
    assert (folder / "a.bin").read_bytes() == b"alpha"


def test_only_the_damaged_file_is_fetched_again() -> None:
    folder = files(first=Source(CONTENT)).fetch()
    (folder / "b.bin").write_bytes(b"bet")
    source = Source(CONTENT)
    files(first=source).fetch()
    assert source.asked == [["b.bin"]]
    assert (folder / "b.bin").read_bytes() == b"beta"


def test_the_next_source_is_asked_where_one_fails_or_lies() -> None:
    lying, good = Source({**CONTENT, "a.bin": b"forged"}), Source(CONTENT)
    folder = files(dead=Source(None), lying=lying, good=good).fetch()
    assert (folder / "a.bin").read_bytes() == b"alpha"
    assert good.asked


def test_no_source_is_one_clear_line_and_leaves_nothing_half(cache) -> None:
    with pytest.raises(DataUnavailable) as refusal:
        files(dead=Source(None), lying=Source({**CONTENT, "b.bin": b"x"})).fetch()
    message = str(refusal.value)
    assert "\n" not in message
    for part in ("toy", "b.bin", "no route to host", "wrong checksum", "delib fetch toy"):
        assert part in message
    assert [p.name for p in (cache / "toy").iterdir()] == ["a.bin"]


def test_offline_contacts_nothing(monkeypatch) -> None:
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    source = Source(CONTENT)
    with pytest.raises(DataUnavailable, match="DELIB_OFFLINE"):
        files(first=source).fetch()
    assert source.asked == []


def test_mnist_is_the_real_thing(monkeypatch) -> None:
    monkeypatch.delenv("DELIB_DATA")
    data = mnist()
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert float(data.train.images.min()) >= 0
    assert float(data.train.images.max()) == 1
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.checksums == MNIST_FILES.checksums


def test_fashion_mnist_is_the_real_thing(monkeypatch) -> None:
    monkeypatch.delenv("DELIB_DATA")
    data = fashion_mnist()
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert len(FASHION_CLASSES) == 10
    assert data.checksums == FASHION_MNIST_FILES.checksums
