"""Photos and labels: any folder, both kinds of label line, and one clear line for what is neither."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from delib import coco
from delib.coco import CLASSES, photo_sets, photos, read_labels, sample_photos
from delib.sources import DataUnavailable


def save(path: Path, size: tuple[int, int] = (6, 4), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_labels_stand_beside_the_images(tmp_path) -> None:
    for name in ("b", "a", "c"):
        save(tmp_path / "images" / "val" / f"{name}.png")
    for kind, line in (("labels", "16 0.5 0.5 0.2 0.4"), ("labels-seg", "16 0.1 0.2 0.5 0.2 0.5 0.8")):
        (tmp_path / kind / "val").mkdir(parents=True)
        (tmp_path / kind / "val" / "a.txt").write_text(line + "\n\n")
    a, b, _ = photos(tmp_path / "images")
    assert a.path.name == "a.png"
    assert a.boxes is not None
    assert a.outlines is not None
    torch.testing.assert_close(a.boxes.boxes, torch.tensor([[0.4, 0.3, 0.6, 0.7]]))
    torch.testing.assert_close(a.outlines.boxes, torch.tensor([[0.1, 0.2, 0.5, 0.8]]))
    assert CLASSES[int(a.boxes.classes)] == "dog"
    assert a.outlines.polygons[0].shape == (3, 2)
    assert b.boxes is not None
    assert len(b.boxes) == 0
    assert len(photos(tmp_path, limit=2)) == 2


def test_a_folder_without_labels_is_as_good(tmp_path) -> None:
    save(tmp_path / "x.jpg")
    (tmp_path / "notes.txt").write_text("hello")
    (only,) = photos(tmp_path)
    assert only.boxes is None
    assert only.outlines is None
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
     "0 0.1 0.1 0.2 0.2 0.3", "0 0.1 0.1 0.2 0.2 0.3 0.3\n0 0.5 0.5 0.1 0.1"],
)  # fmt: skip
def test_bad_labels_are_named(tmp_path, line: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"x\.txt") as refusal:
        read_labels(path)
    assert "\n" not in str(refusal.value)


def test_bad_folders_and_images_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        photos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no image"):
        photos(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.jpg") as refusal:
        photos(tmp_path)[0].read()
    assert "\n" not in str(refusal.value)


def test_the_sample_photos_need_no_import_of_ultralytics() -> None:
    assert [tuple(photo.read().shape) for photo in sample_photos()] == [(3, 1080, 810), (3, 720, 1280)]


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name in names:
            files.writestr(name, b"0 0.5 0.5 0.1 0.1")
    return buffer.getvalue()


def test_coco128_is_unpacked_by_names_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path / "cache"))
    asked = []

    def answer(url: str) -> bytes:
        asked.append(url)
        return archive(
            "coco128/images/train2017/1.jpg", "coco128/labels/train2017/1.txt", "../../train2017/../evil.txt", "x.py"
        )

    monkeypatch.setattr(coco, "download", answer)
    folder = coco.coco128()
    assert (folder / "images" / "1.jpg").is_file()
    assert (folder / "labels" / "1.txt").is_file()
    assert coco.coco128() == folder
    assert len(asked) == 1
    assert not list(tmp_path.glob("*.txt"))
    assert not list(tmp_path.rglob("*.py"))


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
        assert "none how good" in sets.note
