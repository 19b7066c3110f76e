"""YOLOv5-seg: the layers that its checkpoint describes, the boxes that anchors tell, masks, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from foreign import ANCHORS, NAMES, SMALL, assert_inside, small, write
from torch import nn

from delib.data.download import DataUnavailable
from delib.detection.coco import sample_photos
from delib.detection.detector import DetectionNetwork
from delib.detection.infer import detect
from delib.detection.sketches import drawn
from delib.detection.ultralytics import library
from delib.detection.yolov5 import YOLOv5Seg, load_yolov5
from delib.detection.zoo import SEGMENTING, checksums, load_detector
from delib.nn import agree, folded, norm_pairs, unfolded, weight_layers
from delib.nn.layers import parameter_count


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.pt"
    write(path, small())
    return path


def test_a_checkpoint_becomes_the_network_that_was_written(file: Path) -> None:
    network, original, images = load_yolov5(file), small().half().float(), torch.rand(2, 3, 64, 96)
    assert network.names == ("cat", "dog", "owl")
    assert network.heads[1].anchors == ((30.0, 61.0), (62.0, 45.0))
    assert not network.training
    assert all(m.eps == 1e-3 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        ours, theirs = network(images), original(images)
    assert [tuple(raw.shape) for raw in ours] == [(2, 32, 8, 12), (2, 32, 4, 6), (2, 8, 16, 24)]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_layers_are_wired_as_ultralytics_wires_yolov5() -> None:
    """Its network of today has another head; what goes into it is the same but for one activation and the norms."""
    tasks = library()
    torch.manual_seed(0)
    reference = tasks.DetectionModel("yolov5n.yaml", verbose=False).eval()
    description = tasks.yaml_model_load("yolov5n.yaml") | {"width_multiple": 0.25, "depth_multiple": 0.33}
    description["head"][-1] = [[17, 20, 23], 1, "Segment", ["nc", "anchors", 32, 256]]
    ours = YOLOv5Seg(description, torch.ones(3, 3, 2), [str(i) for i in range(80)]).eval()
    state = {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith("model.24.")}
    missing = ours.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("model.24.") for name in missing.missing_keys)
    reference.model[9].cv1.act = nn.SiLU()
    read: list[list[torch.Tensor]] = []
    for head in (reference.model[-1], ours.model[-1]):
        head.register_forward_pre_hook(lambda _, args: read.append([x.clone() for x in args[0]]))
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 96)
        reference(images)
        ours(images)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*read, strict=True))
    assert len(read[0]) == 3


def test_boxes_and_confidences_written_out() -> None:
    network, size = small(), (64, 96)
    raws = [torch.randn(1, 32, 8, 12), torch.randn(1, 32, 4, 6), torch.zeros(1, 8, 16, 24)]
    boxes, scores = network.decode(raws, size)
    assert boxes.shape == (1, 2 * (96 + 24), 4)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    for level, anchor, row, column in ((0, 0, 0, 0), (0, 1, 7, 3), (1, 1, 2, 5), (1, 0, 3, 1)):
        stride, (rows, columns) = 8 << level, raws[level].shape[2:]
        x, y, w, h, sure, *classes = raws[level][0, 16 * anchor : 16 * anchor + 8, row, column].tolist()
        middle = [(2 * sigmoid(v) - 0.5 + cell) * stride for v, cell in ((x, column), (y, row))]
        sides = [(2 * sigmoid(v)) ** 2 * float(a) * stride for v, a in zip((w, h), ANCHORS[level, anchor], strict=True)]
        at = 192 * level + (anchor * rows + row) * columns + column
        expected = [m - s / 2 for m, s in zip(middle, sides, strict=True)]
        expected += [m + s / 2 for m, s in zip(middle, sides, strict=True)]
        assert boxes[0, at].tolist() == pytest.approx(expected, abs=1e-3)
        assert scores[0, at].tolist() == pytest.approx([sigmoid(sure) * sigmoid(c) for c in classes], abs=1e-5)


def test_masks_are_coefficients_times_prototypes() -> None:
    network = small()
    raws = [torch.randn(2, 32, 8, 12), torch.randn(2, 32, 4, 6), torch.randn(2, 8, 16, 24)]
    at = torch.tensor([0, 96 + 5, 192 + 24 + 7])
    logits = network.masks(raws, 1, at)
    own = [raws[0][1, 8:16, 0, 0], raws[0][1, 24:32, 0, 5], raws[1][1, 24:32, 1, 1]]
    for mask, coefficients in zip(logits, own, strict=True):
        expected = sum(c * prototype for c, prototype in zip(coefficients, raws[2][1], strict=True))
        assert torch.allclose(mask, expected, atol=1e-5)


def test_detections_bring_sketches_of_their_masks() -> None:
    network = small()
    with torch.no_grad():
        for conv in network.model[-1].m:
            conv.bias[4::16] += 2.0
    photo = sample_photos()[0].read()
    (found,) = detect(network, [photo], size=(96, 64), threshold=0.1, limit=5)
    assert len(found) == 5
    assert found.sketches is not None
    assert found.masks is None
    some = found[torch.tensor([False, True, False, False, True])]
    masks = drawn(some.sketches, 1080, 810)
    assert torch.equal(masks, drawn(found.sketches, 1080, 810)[[1, 4]])
    assert_inside(masks, some.boxes)


def test_its_norms_fold_and_unfold(file: Path) -> None:
    network, images = load_yolov5(file), torch.rand(2, 3, 64, 64)
    pairs = norm_pairs(network, images)
    assert len(pairs) == sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    plain = folded(network, pairs)
    assert isinstance(plain, DetectionNetwork)
    with torch.no_grad():
        assert agree(plain(images), network(images))
        assert agree(unfolded(plain, network, pairs)(images), network(images))
    assert set(plain.activations) == set(weight_layers(plain)) - {"model.9.m.0", "model.9.m.1"}


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"nc": 4}, "size mismatch"),
        ({"nc": None}, ""),
        ({"yaml": None}, ""),
        ({"yaml": SMALL | {"backbone": SMALL["backbone"][:-1]}}, ""),
        ({"yaml": SMALL | {"width_multiple": 1e9}}, "channels"),
        ({"yaml": SMALL | {"depth_multiple": 1e9}}, "repeated"),
        ({"yaml": SMALL | {"depth_multiple": 4.0}}, "Missing key"),
        ({"yaml": SMALL | {"backbone": [[-1, 1, "Evil", [1]], *SMALL["backbone"]]}}, "Evil"),
        ({"yaml": SMALL | {"backbone": [[5, 1, "Conv", [16]], *SMALL["backbone"]]}}, "not before it"),
        ({"yaml": SMALL | {"head": SMALL["head"][:-1]}}, ""),
        ({"yaml": SMALL | {"head": [*SMALL["head"][:-1], [[5, 8], 1, "Segment", ["nc", "anchors", 8, 16]]]}}, "levels"),
        ({"yaml": SMALL | {"head": [*SMALL["head"][:-1], [[8], 1, "Segment", ["nc", "anchors", 8, 16]]]}}, "anchors"),
        ({"yaml": SMALL | {"head": [[-1, 1, "nn.Upsample", []] for _ in range(90)] + SMALL["head"][-1:]}}, ""),
        ({"yaml": SMALL | {"head": [[[-1, 0], 1, "Concat", [1]], *SMALL["head"][1:]]}}, "Sizes of tensors"),
        ({"yaml": SMALL | {"backbone": [[-1, 1, "Conv", [16, 0, 2]], *SMALL["backbone"][1:]]}}, "kernel"),
        ({"yaml": SMALL | {"backbone": [[-1, 1, "Conv", [16, 3, 10**9]], *SMALL["backbone"][1:]]}}, "stride"),
        ({"yaml": SMALL | {"backbone": SMALL["backbone"] * 80}}, "300"),
    ],
)
def test_descriptions_that_are_not_the_tensors_are_refused_in_one_line(attributes, says: str, tmp_path) -> None:
    path = tmp_path / "odd.pt"
    write(path, small(), **attributes)
    with pytest.raises(ValueError, match=rf"odd\.pt.*{says}") as refusal:
        load_yolov5(path)
    assert "\n" not in str(refusal.value)


def test_anchors_without_size_are_refused(tmp_path) -> None:
    write(tmp_path / "flat.pt", small(), anchors=-ANCHORS)
    with pytest.raises(ValueError, match=r"flat\.pt.*anchors"):
        load_yolov5(tmp_path / "flat.pt")


def test_every_tensor_has_its_place_and_no_other(tmp_path) -> None:
    network = small()
    network.model[0].register_buffer("more", torch.zeros(3))
    write(tmp_path / "more.pt", network)
    with pytest.raises(ValueError, match=r"more\.pt.*Unexpected key"):
        load_yolov5(tmp_path / "more.pt")


def test_names_from_a_file_are_short_and_printable(tmp_path) -> None:
    write(tmp_path / "a.pt", small(), names={0: "x" * 500, 1: "a\nb", 7: "seven"})
    assert load_yolov5(tmp_path / "a.pt").names == ("x" * 40, "class 1", "class 2")


def test_a_file_is_told_from_ultralytics_own(file: Path, tmp_path) -> None:
    from ultralytics.nn import tasks

    torch.save({"model": tasks.DetectionModel("yolo11n.yaml", verbose=False), "train_args": {}}, tmp_path / "u.pt")
    assert isinstance(load_detector(str(file)), YOLOv5Seg)
    assert load_detector(str(tmp_path / "u.pt")).heads[0].classes == 80
    assert checksums(str(file)).keys() == {"small.pt"}
    with pytest.raises(ValueError, match=r"small\.pt.*weights"):
        load_detector(str(file), "some.weights")


def test_what_cannot_be_had_is_one_clear_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    cases = {
        "yolov5s-seg": (DataUnavailable, "delib fetch yolov5s-seg"),
        "yolov8n-seg": (DataUnavailable, "yolov8n-seg.pt is not here"),
        "yolov3u": (DataUnavailable, "yolov3u.pt is not here"),
        "yolo11n-seg.pt": (DataUnavailable, "yolo11n-seg.pt is not here"),
        "resnet": (ValueError, "no detector is called 'resnet'; choose one of yolov3-tiny, yolov3, yolov5s-seg"),
        "": (ValueError, "no detector"),
        str(tmp_path / "yolo.pt"): (ValueError, "no such file"),
    }
    for name, (kind, says) in cases.items():
        with pytest.raises(kind, match=says) as refusal:
            load_detector(name)
        assert "\n" not in str(refusal.value)


def test_the_published_network_is_as_large_as_said() -> None:
    """Where it was fetched before: the archive that holds it has 86 MB."""
    path = SEGMENTING["yolov5s-seg"].folder / "yolov5s-seg.pt"
    if not path.is_file():
        pytest.skip("yolov5s-seg has not been fetched")
    network = load_detector("yolov5s-seg")
    assert parameter_count(network) == 7_621_277
    assert network.names[:2] == ("person", "bicycle")
    assert network.heads[0].anchors[0] == (10.0, 13.0)


def test_classes_are_those_of_the_file() -> None:
    assert small().names == tuple(NAMES.values())
