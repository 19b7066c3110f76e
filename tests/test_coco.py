"""Photos and labels: any folder, both kinds of label line, and one clear line for what is neither."""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from delib.data.download import DataUnavailable, FileSet
from delib.detection import coco
from delib.detection.coco import CLASSES, Photo, photo_sets, photos, read_labels, sample_photos


def save(path: Path, size: tuple[int, int] = (6, 4), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_labels_stand_beside_the_images(tmp_path) -> None:
    for name in ("b", "a", "c"):
        save(tmp_path / "images" / "val" / f"{name}.png")
    (tmp_path / "labels" / "val").mkdir(parents=True)
    lines = ["16 0.5 0.5 0.2 0.4", "", "0 0.1 0.2 0.5 0.2 0.5 0.8"]  # a box, and an outline
    (tmp_path / "labels" / "val" / "a.txt").write_text("\n".join(lines))
    a, b, _ = photos(tmp_path / "images")
    assert a.path.name == "a.png"
    assert a.labels is not None
    torch.testing.assert_close(a.labels.boxes, torch.tensor([[0.4, 0.3, 0.6, 0.7], [0.1, 0.2, 0.5, 0.8]]))
    assert [CLASSES[cls] for cls in a.labels.classes.tolist()] == ["dog", "person"]
    assert b.labels is not None
    assert len(b.labels) == 0
    assert len(photos(tmp_path, limit=2)) == 2


def test_a_folder_without_labels_is_as_good(tmp_path) -> None:
    save(tmp_path / "x.jpg")
    (tmp_path / "notes.txt").write_text("hello")
    (only,) = photos(tmp_path)
    assert only.labels is None
    assert only.read().shape == (3, 4, 6)
    assert only.read().dtype == torch.uint8


def test_photos_are_read_upright_in_three_colours(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # lying on its side
    path = save(tmp_path / "x.png", exif=exif)
    assert photos(tmp_path)[0].read().shape == (3, 6, 4)
    Image.new("L", (5, 3), 77).save(path)
    grey = photos(tmp_path)[0].read()
    assert grey.shape == (3, 3, 5)
    assert (grey == 77).all()


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.2", "a 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2", "0 nan 0.5 0.2 0.2", "0 0.5 0.5 20 0.2",
     "0 0.1 0.1 0.2 0.2 0.3"],
)  # fmt: skip
def test_bad_labels_are_named(tmp_path, line: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"x\.txt") as refusal:
        read_labels(path)
    assert "\n" not in str(refusal.value)


def test_outlines_are_kept_where_every_object_has_one(tmp_path) -> None:
    outline = "1 0.1 0.1 0.5 0.1 0.5 0.4"
    for name, boxes, outlines in (
        ("a", "1 0.3 0.25 0.4 0.3", outline),  # boxes and outlines apart, as in two published sets
        ("b", outline, None),  # outlines alone
        ("c", f"{outline}\n1 0.3 0.25 0.4 0.3", None),  # some of them
        ("d", "1 0.3 0.25 0.4 0.3", None),
    ):
        save(tmp_path / "images" / f"{name}.png")
        for folder, text in (("labels", boxes), ("labels-seg", outlines)):
            if text is not None:
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / f"{name}.txt").write_text(text)
    a, b, c, d = coco.photos(tmp_path / "images")
    for photo in (a, b):
        assert photo.outlined is not None
        assert photo.outlined.outlines is not None
        assert torch.allclose(photo.outlined.outlines[0], torch.tensor([[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]))
        assert photo.labels is not None
        assert torch.allclose(photo.labels.boxes, torch.tensor([[0.1, 0.1, 0.5, 0.4]]))
    assert c.outlined is None
    assert d.outlined is None


def test_bad_folders_and_images_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        photos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no image"):
        photos(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.jpg") as refusal:
        photos(tmp_path)[0].read()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
@given(grey=arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_sixteen_bits_become_the_nearest_eight(tmp_path_factory, mode: str, grey: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "deep.tif"
    Image.fromarray(grey.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = Photo(path).read()
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels, np.rint(grey / 65535 * 255)[None].repeat(3, axis=0))


def test_a_sixteen_bit_png_looks_like_its_copy_of_eight_bits(tmp_path) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    exif = Image.Exif()
    exif[274] = 6  # lying on its side
    Image.fromarray(eight).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "b.png", exif=exif)
    a, b = (photo.read() for photo in photos(tmp_path))
    assert torch.equal(a, b)
    assert b[0, 0, 0] == eight[-1, 0]


def deep_png(samples: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but does not write: ``samples`` [height, width, channels]."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "grey+a", "rgba"]
)
def test_no_sixteen_bit_png_is_cut_off(tmp_path, colour: int, channels: int) -> None:
    ramp = np.linspace(0, 65535, 300).astype(np.uint16)
    (tmp_path / "x.png").write_bytes(deep_png(ramp[None, :, None].repeat(channels, axis=2), colour))
    pixels = photos(tmp_path)[0].read()
    assert pixels.shape == (3, 1, 300)
    assert np.abs(pixels.numpy() - ramp / 257).max() <= 1, "Pillow rounds colours down, grey is rounded here"


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.array([[0, 65536]], np.int32), "from 0 to 65536"),
        (np.array([[-1, 7]], np.int32), "from -1 to 7"),
        (np.array([[0.0, 1.0]], np.float32), "floating-point"),
    ],
)
def test_pixels_without_a_known_white_are_refused(tmp_path, pixels: np.ndarray, why: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=rf"odd\.tif: .*{why}.*save it with 8 bits") as refusal:
        Photo(tmp_path / "odd.tif").read()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_photos_with_alpha_or_a_palette_are_read(tmp_path, mode: str) -> None:
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(tmp_path / "x.png")
    pixels = photos(tmp_path)[0].read()
    assert pixels.shape == (3, 3, 5)
    assert (pixels == 255).all()


SEVEN = ["dog.jpg", "eagle.jpg", "giraffe.jpg", "horses.jpg", "kite.jpg", "person.jpg", "scream.jpg"]


def test_without_a_network_the_sample_photos_are_those_of_ultralytics(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    assert [tuple(photo.read().shape) for photo in sample_photos()] == [(3, 1080, 810), (3, 720, 1280)]


def test_the_sample_photos_are_two_and_the_seven_of_darknet() -> None:
    try:
        coco.SAMPLE_FILES.fetch()
    except DataUnavailable as absent:
        pytest.skip(str(absent))
    several = sample_photos()
    assert [photo.path.name for photo in several] == ["bus.jpg", "zidane.jpg", *SEVEN]
    assert several[2].read().shape == (3, 576, 768)
    assert photo_sets("samples").tested == several


@pytest.fixture
def seven(tmp_path, monkeypatch) -> list[str]:
    """Stand-ins for darknet's photos, from a source that writes down what it was asked for."""
    monkeypatch.setenv("DELIB_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("DELIB_OFFLINE", raising=False)
    content = {name: save(tmp_path / name).read_bytes() for name in coco.SAMPLE_FILES.checksums}
    asked: list[str] = []

    def source(missing: list[str]) -> Iterator[tuple[str, bytes]]:
        asked.extend(missing)
        yield from ((name, content[name]) for name in missing)

    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    monkeypatch.setattr(coco, "SAMPLE_FILES", FileSet("darknet-samples", checksums, {"here": source}))
    return asked


def test_the_seven_are_fetched_once_and_nine_photos_measure_nothing(seven: list[str], monkeypatch) -> None:
    sets = photo_sets("samples")
    assert [photo.path.name for photo in sets.tested] == ["bus.jpg", "zidane.jpg", *SEVEN]
    assert sets.recovery == sets.validation == sets.tested
    assert "Only the nine sample photos (asked for)" in sets.note
    assert "nine photos measure nothing" in sets.note
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    assert photo_sets("samples") == sets
    assert seven == SEVEN


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name in names:
            files.writestr(name, b"0 0.5 0.5 0.1 0.1")
    return buffer.getvalue()


def test_coco128_is_unpacked_once_and_nowhere_else(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path / "cache"))
    asked = []

    def answer(url: str) -> bytes:
        asked.append(url)
        return archive(
            "coco128/images/train2017/1.jpg", "coco128/labels/train2017/1.txt", "../../train2017/../evil.txt", "/y.txt"
        )

    monkeypatch.setattr(coco, "download", answer)
    folder = coco.coco128()
    (found,) = coco.photos(folder)
    assert found.labels is not None
    assert len(found.labels) == 1
    assert coco.coco128() == folder
    assert len(asked) == 1
    assert set(tmp_path.rglob("*.txt")) == set(folder.rglob("*.txt"))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_archive_leaves_nothing_behind(tmp_path, monkeypatch, content: bytes) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.setattr(coco, "download", lambda _: content)
    with pytest.raises(DataUnavailable, match="any folder of photos") as refusal:
        coco.coco128()
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.jpg"))


def test_archives_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.setattr(coco, "MAX_ZIP_BYTES", 20)
    monkeypatch.setattr(coco, "download", lambda _: archive("train2017/1.jpg", "train2017/2.jpg"))
    with pytest.raises(DataUnavailable, match="more than it should"):
        coco.coco128()
    assert not list(tmp_path.rglob("*.jpg"))


def test_offline_contacts_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    with pytest.raises(DataUnavailable, match="DELIB_OFFLINE"):
        coco.coco128()


def names(several: list[coco.Photo]) -> set[str]:
    return {photo.path.name for photo in several}


def test_what_is_held_out_is_not_recovered_on(tmp_path) -> None:
    for folder, count in (("a", 5), ("b", 8), ("c", 2)):
        for i in range(count):
            save(tmp_path / folder / f"{folder}{i}.png")
    one = photo_sets(str(tmp_path / "a"), held_out=60)
    assert (len(one.recovery), len(one.validation)) == (3, 2), "at most half is held out"
    assert not names(one.recovery) & names(one.validation)
    assert one.tested == one.validation
    more = photo_sets(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"), held_out=3, seed=4)
    assert names(more.validation) < names(photos(tmp_path / "b"))
    assert names(more.recovery) | names(more.validation) == names(photos(tmp_path / "a")) | names(
        photos(tmp_path / "b")
    )
    assert not names(more.recovery) & names(more.validation)
    assert names(more.recovery[: more.own]) == names(photos(tmp_path / "a"))
    assert names(more.tested) == {"c0.png", "c1.png"}
    assert more == photo_sets(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"), held_out=3, seed=4)
    assert len(set(more.checksums.values())) == 3


def test_samples_stand_in_and_say_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    for sets in (photo_sets("samples"), photo_sets()):
        assert names(sets.recovery) == names(sets.tested) == {"bus.jpg", "zidane.jpg"}
        assert "Only the two sample photos" in sets.note
        assert "two photos measure nothing" in sets.note
        assert "none how good" in sets.note
        assert "delib fetch darknet-samples" in sets.note
        assert str(tmp_path) not in sets.note, "reports show it, and tell nobody's folders"
