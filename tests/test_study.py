"""Studies: what a teacher and its students find on photos, asked as a notebook asks it, with a toy detector."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from delib.detection import study as module
from delib.detection.coco import Photo, photos
from delib.detection.darknet import Darknet, yolov3_tiny
from delib.detection.divergence import detection_divergence
from delib.detection.infer import CONFIDENT, SHOWN, Detections
from delib.detection.letterbox import Letterboxing, prepare
from delib.detection.metrics import lost_objects, mask_iou, score_table
from delib.detection.study import Study, Validation, calibration_inputs, classes_present

SQUARES = {0: (8, 8, 24, 24), 1: (36, 10, 60, 30), 2: (10, 40, 30, 60)}  # class: box on a photo of 64 pixels
KEYS = (
    "objects retained_25 retained_50 retention_25 retention_50 detections_50 false_positives_50 confidence_gap mask_iou"
)


class Toy(nn.Module):
    """Sees a square of class c where the photo's colour c is strong, as confident as ``factors`` say."""

    size, letterboxing = (64, 64), Letterboxing()

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, images: Tensor) -> Tensor:
        return images

    def decode(self, outputs: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        assert size == (64, 64)
        boxes = torch.tensor(list(SQUARES.values())).float().expand(len(outputs), -1, -1)
        strong = torch.stack([outputs[:, c, y1:y2, x1:x2].mean((1, 2)) for c, (x1, y1, x2, y2) in SQUARES.items()], 1)
        return boxes, torch.diag_embed(self.factors * strong)


def scene(*brightness: float) -> Tensor:
    """A photo with a square of each colour, as bright as that."""
    photo = torch.zeros(3, 64, 64)
    for (c, (x1, y1, x2, y2)), light in zip(SQUARES.items(), brightness, strict=True):
        photo[c, y1:y2, x1:x2] = light
    return (255 * photo).round().byte()


SCENES = [scene(0, 0.5, 0), scene(1, 0.9, 0.3), scene(0, 0, 1)]
TEACHER, STUDENT = Toy(0.95, 0.95, 0.95), Toy(0.9, 0.4, 0.1)


@pytest.fixture
def study() -> Study:
    return Study(TEACHER, SCENES, 64)


def image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_what_the_teacher_sees_and_where_most_of_it_is(study: Study) -> None:
    assert len(study) == 3
    assert [found.classes.tolist() for found in study.shown] == [[1], [0, 1, 2], [2]]
    assert study.objects == 3
    assert study.order == [1, 2, 0]  # 2 objects, 1 and none
    assert torch.equal(study.inputs(2), prepare([SCENES[1], SCENES[2]], (64, 64))[0])
    assert torch.equal(study.inputs([0]), prepare(SCENES[:1], (64, 64))[0])


def test_comparison_and_scores_are_the_same_numbers(study: Study) -> None:
    found = study.detect(STUDENT)
    result, scores = study.compare(found), study.scores(found)
    # Objects: 0.95 of class 0 (found with 0.9), 0.855 of class 1 (0.36), 0.95 of class 2 (0.1: lost).
    assert (scores["objects"], scores["retained_25"], scores["retained_50"]) == (3, 2, 1)
    assert (result.retained(), result.objects) == (2, 3)
    assert scores["confidence_gap"] == pytest.approx((0.05 + 0.495 + 0.95) / 3, abs=1e-3)
    assert set(scores) == set(KEYS.split())
    assert scores["mask_iou"] == 1  # same boxes
    rows = score_table(scores | {"sparsity": 0.9, "bits": 4})
    assert rows["objects found with 0.25 or more"] == "2 of 3"
    assert rows["sparsity of all convolution weights"] == "90.00%"
    assert not any("AP50" in name for name in rows)


def test_a_photo_s_labels_are_measured_against(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(SCENES[2].permute(1, 2, 0).numpy()).save(tmp_path / "images" / "x.png")
    (tmp_path / "labels" / "x.txt").write_text("2 0.3125 0.78125 0.3125 0.3125\n")
    labelled = Study(TEACHER, photos(tmp_path))
    scores = labelled.scores(labelled.detect(Toy(0, 0, 0)))
    assert (scores["teacher_ap50"], scores["ap50"]) == (pytest.approx(1), 0)


def test_what_was_lost_is_listed_with_both_confidences(study: Study) -> None:
    found = study.detect(STUDENT)
    table = study.lost(found, at=0.5)
    assert table.columns.tolist() == ["photo", "class", "teacher's confidence", "student's"]
    assert table[["photo", "class"]].values.tolist() == [[1, "bicycle"], [2, "car"]]
    assert table["student's"].tolist() == [pytest.approx(0.36, abs=5e-3), 0]  # 0.1 is below what is compared
    assert len(study.lost(found, at=0.25)) == 1
    assert lost_objects(study.shown[2], found[2].above(SHOWN)).classes.tolist() == [2]
    assert study.lost_gallery(study.teacher) is None
    gallery = study.lost_gallery(found, most=1)
    assert gallery is not None
    assert gallery[1].endswith("person 0.90, bicycle 0.36")


def test_galleries_show_the_photos_asked_for_and_say_it(study: Study) -> None:
    png, words = study.gallery(photos=2)
    assert image(png).size == (2 * 360 + 12, 360)
    assert words == "Photos with the teacher's detections: person 0.95, bicycle 0.86, car 0.28; car 0.95"
    assert "student" in study.gallery(study.detect(STUDENT), [0])[1]
    png, words = study.side_by_side(study.detect(STUDENT), [2, 0])
    assert image(png).size == (2 * 360 + 12, 2 * (360 + 32) + 12)
    assert words.endswith("The student's: nothing; nothing")


def test_frames_and_curves_of_students_by_sparsity(study: Study) -> None:
    found = {0.0: study.teacher, 0.5: study.detect(STUDENT)}
    frames = study.frames(found)
    assert [label for label, *_ in frames] == ["0.0%", "50.0%"]
    assert frames[1][2:] == (
        "At 50.0%: person 0.90, bicycle 0.36; nothing",
        "2 of 3 objects on all 3 photos retained",
    )
    assert not np.array_equal(image(frames[0][1]).convert("RGB"), image(frames[1][1]).convert("RGB"))
    assert study.curves(found) == {
        "objects retained at 0.25": ([0.0, 0.5], [1, pytest.approx(2 / 3)]),
        "objects retained at 0.5": ([0.0, 0.5], [1, pytest.approx(1 / 3)]),
        "false positives at 0.5": ([0.0, 0.5], [0, 0]),
    }


def test_each_box_is_segmented_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...]] = []
    grabcut = module.grabcut
    monkeypatch.setattr(module, "grabcut", lambda photo, boxes: asked.extend(boxes.tolist()) or grabcut(photo, boxes))
    study = Study(TEACHER, SCENES)
    study.gallery()
    study.side_by_side(study.detect(STUDENT))
    study.scores(study.detect(STUDENT))
    assert len(asked) == sum(map(len, study.shown))


def test_a_network_s_own_masks_are_taken(study: Study) -> None:
    own = torch.zeros(1, 64, 64, dtype=torch.bool)
    own[0, 44:56, 12:28] = True
    found = [one[:0] for one in study.teacher]
    found[2] = Detections(torch.tensor([[10.0, 40, 30, 60]]), torch.tensor([0.9]), torch.tensor([2]), own)
    objects = study.shown[2][study.shown[2].scores > CONFIDENT]
    drawn = module.grabcut(SCENES[2], objects.boxes)
    assert study.scores(found)["mask_iou"] == pytest.approx(float(mask_iou(drawn, own)))


@pytest.fixture(scope="module")
def network() -> Darknet:
    return yolov3_tiny(1)


def test_validation_is_the_mean_divergence_over_photos(network: Darknet, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, SCENES, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    validation, student = Validation(network, [Photo(path) for path in paths], 64, batch=2), yolov3_tiny(2)
    inputs, _ = prepare(SCENES, (64, 64))
    assert torch.equal(validation.inputs, inputs)
    with torch.no_grad():
        expected = float(detection_divergence(network.heads)(student(inputs), network(inputs)))
    assert validation.divergence(student) == pytest.approx(expected, rel=1e-4)
    assert validation.divergence(network) == pytest.approx(0, abs=1e-6)


def test_calibration_inputs_are_photos_then_views() -> None:
    inputs = calibration_inputs(SCENES, SCENES, (2, 3), 32, seed=0)
    assert inputs.shape == (5, 3, 32, 32)
    assert torch.equal(inputs[:2], prepare(SCENES[:2], (32, 32))[0])
    assert torch.equal(inputs, calibration_inputs(SCENES, SCENES, (2, 3), 32, seed=0))
    assert torch.equal(calibration_inputs(SCENES, SCENES, (2, 0), 32, seed=0), inputs[:2])


def test_classes_are_those_seen_with_half_confidence_or_more() -> None:
    assert classes_present(TEACHER, SCENES, 64) == [[], [0, 1], [2]]
