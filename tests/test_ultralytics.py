"""Ultralytics' networks as plain modules: the same boxes as ultralytics decodes, masks, and no side effects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign import assert_inside

from delib.data.download import DataUnavailable
from delib.detection.coco import sample_photos
from delib.detection.infer import detect
from delib.detection.sketches import drawn
from delib.detection.ultralytics import Ultra, library, load_ultra
from delib.evolution import Cycle, evolve
from delib.nn import sparsity
from delib.nn.divergence import mse
from delib.nn.layers import weight_layers


@pytest.fixture(scope="module")
def network() -> Ultra:
    return load_ultra("yolo11n-seg.yaml")


def plain(name: str) -> torch.nn.Module:
    """The same random network without delib's adaptor."""
    from ultralytics.nn import tasks

    kind = tasks.SegmentationModel if "-seg" in name else tasks.DetectionModel
    torch.manual_seed(0)
    return kind(tasks.yaml_model_load(name), verbose=False).eval()


@pytest.mark.parametrize(
    "name", ["yolo11n-seg.yaml", "yolov3-tinyu.yaml", "yolo26n.yaml", "yolo26n-seg.yaml", "yolov10n.yaml"]
)
def test_boxes_are_those_that_ultralytics_decodes(name: str) -> None:
    adapted, images = load_ultra(name), torch.rand(2, 3, 64, 96)
    reference = plain(name)
    reference.model[-1].end2end = False  # compare what comes before its own choice of the best
    with torch.no_grad():
        boxes, scores = adapted.decode(adapted(images), (64, 96))
        theirs = reference(images)[0]
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    x, y, w, h = theirs[:, :4].unbind(1)
    expected = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    torch.testing.assert_close(boxes, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores, theirs[:, 4 : 4 + scores.shape[2]].mT)


@pytest.mark.parametrize("name", ["yolov8n-seg.yaml", "yolo26n-seg.yaml"])
def test_outputs_are_those_of_ultralytics_at_their_places(name: str) -> None:
    """Prototypes too, whose transposed convolution is one of 1 x 1 here."""
    adapted, reference, images = load_ultra(name), plain(name), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        *levels, prototypes = adapted(images)
        raw = reference(images)[1]
    raw = raw.get("one2many", raw)
    theirs = torch.cat([raw["boxes"], raw["scores"], raw["mask_coefficient"]], 1)
    torch.testing.assert_close(torch.cat([level.flatten(2) for level in levels], 2), theirs)
    proto = raw["proto"][0] if isinstance(raw["proto"], tuple) else raw["proto"]
    torch.testing.assert_close(prototypes, proto, rtol=1e-4, atol=1e-5)
    assert not [m for m in adapted.modules() if isinstance(m, torch.nn.ConvTranspose2d)]


def test_outputs_are_raw_in_both_modes(network: Ultra) -> None:
    images = torch.rand(1, 3, 64, 64)
    shapes = [
        (1, 176, 8, 8),
        (1, 176, 4, 4),
        (1, 176, 2, 2),
        (1, 32, 16, 16),
    ]  # 64 + 80 + 32 channels
    with torch.no_grad():
        assert [tuple(t.shape) for t in network.eval()(images)] == shapes
        assert [tuple(t.shape) for t in network.train()(images)] == shapes
    network.eval()
    assert not network.model.model[0].training


def test_the_fixed_convolution_is_no_weight_to_evolve(network: Ultra) -> None:
    assert not [name for name in weight_layers(network) if "dfl" in name]


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo11n-seg", "yolov10n", "yolo26n-seg"])
def test_every_weight_has_a_part_in_the_outputs(name: str) -> None:
    adapted = load_ultra(f"{name}.yaml").train()
    outputs = adapted(torch.rand(2, 3, 64, 64))
    sum(output.square().sum() for output in outputs).backward()
    idle = [n for n, m in weight_layers(adapted).items() if m.weight.grad is None or not m.weight.grad.any()]
    assert not idle


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("yolov8n-pose", "Pose"),
        ("yolo11n-pose", "Pose"),
        ("yolov8n-obb", "OBB"),
        ("yolo11n-obb", "OBB"),
        ("yolo26n-pose", "Pose26"),
        ("yolo26n-obb", "OBB26"),
        ("yolo11n-cls", "Classify"),
        ("rtdetr-l", "RTDETRDecoder"),
        ("yolov8n-world", "WorldDetect"),
        ("yoloe-11n-seg", "YOLOESegment"),
    ],
)
def test_heads_of_which_something_would_not_be_read_are_refused_by_name(name: str, head: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{head} is not a head") as refusal:
        load_ultra(f"{name}.yaml")
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_another_head_is_refused_by_name(tmp_path) -> None:
    from ultralytics.nn import tasks

    library()
    path = tmp_path / "mine.pt"
    torch.save({"model": tasks.PoseModel("yolo11n-pose.yaml", verbose=False), "train_args": {}}, path)
    with pytest.raises(ValueError, match=r"mine\.pt.*Pose is not a head"):
        load_ultra(path)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_a_detection_network_evolves(name: str) -> None:
    teacher = load_ultra(f"{name}.yaml")
    targets = {"model.model.0.conv": 0.5, "model.model.1.conv": 0.4}

    def divergence(student: list[torch.Tensor], goal: list[torch.Tensor]) -> torch.Tensor:
        return sum(mse(ours, theirs) for ours, theirs in zip(student, goal, strict=True))

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cycle = Cycle(population=2, share=0.5)
    student = evolve(teacher, images, targets, cycle, divergence=divergence).student
    assert sparsity(student) > 0
    assert divergence(student(images), teacher(images)) > 0


def test_a_network_with_a_mask_head_brings_its_masks(network: Ultra) -> None:
    head = network.model.model[-1]
    for branch in head.cv3:  # random networks find nothing by themselves
        torch.nn.init.constant_(branch[-1].bias, 1.0)
    photo = sample_photos()[0].read()
    (found,) = detect(network, [photo], size=(96, 96), limit=5)
    assert network.has_masks
    assert found.sketches is not None
    assert len(found)
    assert_inside(drawn(found.sketches, 1080, 810), found.boxes)


def test_a_checkpoint_is_read_back(tmp_path) -> None:
    path = tmp_path / "mine.pt"
    torch.save({"model": plain("yolo11n.yaml"), "train_args": {}}, path)
    adapted, reference, images = load_ultra(path), load_ultra("yolo11n.yaml"), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(adapted(images), reference(images), strict=True))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_checkpoints_run_no_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"trap\.pt") as refusal:
        load_ultra(tmp_path / "trap.pt")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "sprung").exists()


def test_what_cannot_be_had_is_one_clear_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    (tmp_path / "junk.pt").write_bytes(b"hello" * 100)
    torch.save({"model": torch.nn.Linear(2, 2), "train_args": {}}, tmp_path / "linear.pt")
    (tmp_path / "yolo.yaml").write_text("head: 3\n")
    (tmp_path / "yolo1.yaml").write_text("{[")
    cases = {
        "yolov3u.pt": (DataUnavailable, "DELIB_OFFLINE"),
        "yolov3.pt": (ValueError, "YOLOv3u"),
        str(tmp_path / "none.pt"): (ValueError, "no such file"),
        str(tmp_path / "junk.pt"): (ValueError, "no checkpoint"),
        str(tmp_path / "linear.pt"): (ValueError, "no checkpoint"),
        str(tmp_path / "yolo.yaml"): (ValueError, "no checkpoint or description"),
        str(tmp_path / "yolo1.yaml"): (ValueError, "no checkpoint or description"),
        "nosuch.yaml": (ValueError, "no such network"),
        "yolo.onnx": (ValueError, "expected"),
        "yolo11n-cls.yaml": (ValueError, "detection or segmentation"),
    }
    for name, (kind, says) in cases.items():
        with pytest.raises(kind, match=says) as refusal:
            load_ultra(name)
        assert "\n" not in str(refusal.value)


def test_the_home_folder_is_left_alone(tmp_path) -> None:
    code = "from delib.detection.ultralytics import load_ultra; load_ultra('yolo11n.yaml')"
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("YOLO")}
    environment |= {"HOME": str(home), "DELIB_DATA": str(tmp_path / "cache"), "MPLCONFIGDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert not list(home.rglob("*ltralytics*"))


def test_checkpoints_run_no_code_where_ultralytics_was_imported_before(tmp_path) -> None:
    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    code = "import ultralytics.nn.tasks\nfrom delib.detection import load_ultra\nload_ultra('trap.pt')"
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true"}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": path},
    )
    assert "ValueError: trap.pt" in done.stderr
    assert not (tmp_path / "sprung").exists()
