"""Darknet networks: cfg and weights files read, run and written exactly as darknet does, and hostile ones refused."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opencv import OpenCV
from scale import random_weights
from torch.nn import functional as F
from typer.testing import CliRunner

from delib.cli import app
from delib.coding import container as encode
from delib.data.download import DataUnavailable
from delib.detection.coco import sample_photos
from delib.detection.darknet import Darknet, MaxPool, yolov3, yolov3_tiny
from delib.detection.darknet_cfg import parse_cfg, read_cfg, yolov3_cfg, yolov3_tiny_cfg
from delib.detection.darknet_weights import (
    HEADER,
    read_weights,
    tensors,
    value_count,
    write_weights,
)
from delib.detection.infer import detect
from delib.detection.letterbox import letterbox
from delib.detection.metrics import compare
from delib.detection.zoo import YOLOV3_TINY_FILES, export_darknet, load_yolo
from delib.nn.layers import weight_layers

# Every kind of layer once, at sizes that pooling and grouping do not divide evenly.
SMALL_CFG = """
[net]
width=64
height=64  # a comment
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=8
size=1
pad=1
activation=leaky
[shortcut]
from=-2
activation=linear
[maxpool]
size=2
stride=1
[maxpool]
size=5
stride=1
[convolutional]
filters=16
size=3
stride=2
pad=1
groups=2
activation=linear
[upsample]
stride=2
[route]
layers=-1,3
[route]
layers=-1
groups=2
group_id=1
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=1,2
anchors=3,4, 5,6, 7,8
classes=2
num=3
"""


def small() -> Darknet:
    return random_weights(Darknet(parse_cfg(SMALL_CFG)).eval(), seed=3)


def test_the_two_networks_have_the_published_sizes() -> None:
    tiny, full = yolov3_tiny(), yolov3()
    assert value_count(tiny) == (35_434_956 - 20) // 4
    assert value_count(full) == (248_007_048 - 20) // 4
    assert len(weight_layers(full)) == 75
    assert list(weight_layers(tiny)) == [f"c{i}" for i in (0, 2, 4, 6, 8, 10, 12, 13, 14, 15, 18, 21, 22)]


def test_outputs_are_the_raw_heads_at_their_strides() -> None:
    shapes = [tuple(raw.shape) for raw in yolov3_tiny()(torch.rand(2, 3, 96, 64))]
    assert shapes == [(2, 255, 3, 2), (2, 255, 6, 4)]
    with torch.no_grad():
        shapes = [tuple(raw.shape) for raw in yolov3()(torch.rand(1, 3, 64, 64))]
    assert shapes == [(1, 255, 2, 2), (1, 255, 4, 4), (1, 255, 8, 8)]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_maxpool_pads_as_darknet_does(height: int, width: int, size: int, stride: int) -> None:
    x = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(height * 10 + width))
    # darknet, src/maxpool_layer.c: size - 1 of padding, of which the offset takes the smaller half.
    rows, columns = ((side - 1) // stride + 1 for side in (height, width))
    expected = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            best = -torch.inf
            for a in range(size):
                for b in range(size):
                    y, z = i * stride + a - (size - 1) // 2, j * stride + b - (size - 1) // 2
                    if 0 <= y < height and 0 <= z < width:
                        best = max(best, float(x[0, 0, y, z]))
            expected[i, j] = best
    assert torch.equal(MaxPool(size, stride, size - 1)(x)[0, 0], expected)


def opencv_outputs(cfg: Path, weights: Path, images: torch.Tensor, layers: list[str]) -> list[np.ndarray]:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip(f"OpenCV {cv2.__version__} has no darknet runtime; the reference needs opencv-python < 5")
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    net.setInput(images.numpy())
    return list(net.forward(layers))


def test_every_kind_of_layer_agrees_with_opencv(tmp_path) -> None:
    network = small()
    (tmp_path / "small.cfg").write_text(SMALL_CFG)
    write_weights(network, tmp_path / "small.weights")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (theirs,) = opencv_outputs(tmp_path / "small.cfg", tmp_path / "small.weights", images, ["conv_10"])
    with torch.no_grad():
        (ours,) = network(images)
    assert ours.std() > 0.1
    assert np.abs(theirs - ours.numpy()).max() < 1e-4


def test_yolov3_tiny_agrees_with_opencv_on_a_photo(tmp_path) -> None:
    try:
        network = load_yolo("yolov3-tiny")
        weights = YOLOV3_TINY_FILES.folder / "yolov3-tiny.weights"
    except DataUnavailable as absent:
        pytest.skip(str(absent))
    (tmp_path / "tiny.cfg").write_text(yolov3_tiny_cfg())
    image, _ = letterbox(sample_photos()[0].read(), (416, 416))
    theirs = opencv_outputs(tmp_path / "tiny.cfg", weights, image[None], ["conv_15", "conv_22"])
    with torch.no_grad():
        ours = network(image[None])
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.numpy() - b).max() < 1e-3
    export_darknet(network.state_dict(), tmp_path / "again.weights")
    assert (tmp_path / "again.weights").read_bytes()[20:] == weights.read_bytes()[20:]


def test_opencv_detects_the_same_from_an_exported_file(tmp_path) -> None:
    network, path = random_weights(yolov3_tiny(), seed=1), tmp_path / "student.weights"
    _, cfg = export_darknet(network.state_dict(), path)
    photos = [photo.read() for photo in sample_photos()[:2]]
    try:
        witness = OpenCV(cfg, path)
    except ValueError as absent:
        pytest.skip(str(absent))
    theirs = detect(witness, photos, threshold=0.3, batch=2)
    ours = detect(network, photos, threshold=0.3, batch=2)
    assert all(len(one) > 20 for one in ours)
    result = compare(ours, theirs, confident=0.35)
    assert result.retention(0.3) == 1
    assert result.confidence_gap < 1e-3
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"student\.weights"):
        OpenCV(cfg, path)


@pytest.mark.parametrize(
    "header",
    [HEADER, struct.pack("<4i", 0, 1, 0, 7), struct.pack("<3iQ", 0, 2, 0, 1 << 40), struct.pack("<3iQ", 1, 0, 0, 3)],
)
def test_what_is_written_is_read_back_whatever_the_version(tmp_path, header: bytes) -> None:
    network, path = small(), tmp_path / "x.weights"
    write_weights(network, path)
    content = path.read_bytes()
    assert len(content) == 20 + 4 * value_count(network)
    path.write_bytes(header + content[20:])
    other = random_weights(Darknet(parse_cfg(SMALL_CFG)), seed=4)
    read_weights(other, path)
    for name, tensor in tensors(network):
        assert torch.equal(tensor, other.state_dict()[name])
    write_weights(other, tmp_path / "y.weights")
    assert (tmp_path / "y.weights").read_bytes() == content


def test_values_stand_in_the_file_in_darknets_order(tmp_path) -> None:
    network, path = small(), tmp_path / "x.weights"
    write_weights(network, path)
    values = np.fromfile(path, "<f4", offset=20)
    norm = network.get_submodule("bn0")
    first = [norm.bias, norm.weight, norm.running_mean, norm.running_var, network.get_submodule("c0").weight]
    expected = np.concatenate([tensor.detach().numpy().ravel() for tensor in first])
    assert np.array_equal(values[: len(expected)], expected)
    last = network.get_submodule("c10")
    assert np.array_equal(values[-len(last.weight.flatten()) :], last.weight.detach().numpy().ravel())


def damaged(good: bytes, how: str) -> bytes:
    values = bytearray(good)
    variance = 20 + 4 * 8 * 3  # the first layer's fourth block
    match how:
        case "cut in the header":
            return good[:10]
        case "cut in the counter":
            return good[:17]
        case "cut in the values":
            return good[:-4]
        case "longer":
            return good + b"\0\0\0\0"
        case "not a number":
            values[40:44] = struct.pack("<f", float("nan"))
        case "negative variance":
            values[variance : variance + 4] = struct.pack("<f", -1)
        case "another kind of file":
            values[:12] = b"\x89PNG\r\n\x1a\n\0\0\0\r"
        case "transposed":
            values[:4] = struct.pack("<i", 1001)
    return bytes(values)


@pytest.mark.parametrize(
    "how",
    ["", "cut in the header", "cut in the counter", "cut in the values", "longer", "not a number", "negative variance",
     "another kind of file", "transposed"],
)  # fmt: skip
def test_damaged_weights_are_refused_in_one_line(tmp_path, how) -> None:
    path = tmp_path / "x.weights"
    write_weights(small(), path)
    path.write_bytes(damaged(path.read_bytes(), how) if how else b"")
    with pytest.raises(ValueError, match=r"x\.weights: ") as refusal:
        read_weights(small(), path)
    assert "\n" not in str(refusal.value)


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_no_bytes_whatever_fill_a_network(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("hostile") / "x.weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.weights"):
        read_weights(small(), path)


def replaced(old: str, new: str) -> str:
    assert old in SMALL_CFG
    return SMALL_CFG.replace(old, new, 1)


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ("", "begins with"),
        ("[convolutional]\nfilters=3", "begins with"),
        ("[net]\nnonsense", "line 2"),
        ("[net]\n", "lacks height"),
        ("[net]\nheight=32\nwidth=32\nchannels=3\n", "no [yolo]"),
        ("[net]\n" * 1200, "sections"),
        (replaced("[upsample]", "[dropout]"), "not supported"),
        (replaced("filters=8", "filters=0"), "filters"),
        (replaced("filters=8", "filters=eight"), "filters"),
        (replaced("filters=8", ""), "lacks filters"),
        (replaced("size=3", "size=1000000"), "size"),
        (replaced("groups=2", "groups=3"), "do not divide"),
        (replaced("activation=leaky", "activation=elu"), "activation"),
        (replaced("from=-2", "from=-9"), "from"),
        (replaced("from=-2", "from=5"), "not before"),
        (replaced("layers=-1,3", "layers=-1,99"), "not before"),
        (replaced("filters=14", "filters=15"), "channels"),
        (replaced("mask=1,2", "mask=1,3"), "mask, num and anchors"),
        (replaced("anchors=3,4, ", "anchors=3,"), "mask, num and anchors"),
        (SMALL_CFG + "[maxpool]\nsize=2\n", "only gives boxes"),
        (SMALL_CFG + "scale_x_y=1.05\n", "scale_x_y"),
    ],
)
def test_bad_descriptions_are_refused_in_one_line(cfg: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        Darknet(parse_cfg(cfg, "my.cfg"))
    message = str(refusal.value)
    assert "my.cfg" in message
    assert "\n" not in message


def test_absurd_sizes_allocate_nothing(monkeypatch) -> None:
    huge = "[net]\nheight=32\nwidth=32\nchannels=3\n" + "[convolutional]\nfilters=65536\nsize=3\n" * 3
    monkeypatch.setattr(torch.nn, "Conv2d", lambda width, filters, size, *_, **__: torch.nn.Identity())
    with pytest.raises(ValueError, match="more than"):
        Darknet(parse_cfg(huge, "huge.cfg"))


def test_a_weights_file_is_no_cfg(tmp_path) -> None:
    path = tmp_path / "x.cfg"
    path.write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(ValueError, match="not a text file"):
        read_cfg(path)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ValueError, match="larger than"):
        read_cfg(path)
    path.write_text(yolov3_cfg())
    assert len(read_cfg(path)) == 108  # [net] and the 107 layers of the paper's network


def test_boxes_are_decoded_as_the_paper_says() -> None:
    head = small().heads[0]
    assert head.anchors == ((5, 6), (7, 8))
    assert head.classes == 2
    raw = torch.randn(1, 14, 2, 3, generator=torch.Generator().manual_seed(1))
    boxes, scores = head.decode(raw, (64, 96))
    i = 0
    for a, (width, height) in enumerate(head.anchors):
        for row in range(2):
            for column in range(3):
                x, y, w, h, objectness, *classes = raw[0, 7 * a : 7 * a + 7, row, column]
                centre = torch.stack([(x.sigmoid() + column) * 32, (y.sigmoid() + row) * 32])
                extent = torch.stack([w.exp() * width, h.exp() * height])
                torch.testing.assert_close(boxes[0, i], torch.cat([centre - extent / 2, centre + extent / 2]))
                expected = objectness.sigmoid() * torch.stack(classes).sigmoid()
                torch.testing.assert_close(scores[0, i], expected)
                i += 1
    assert i == boxes.shape[1]


def test_a_student_is_written_for_darknet_and_others_are_refused(tmp_path) -> None:
    network = random_weights(yolov3_tiny(), seed=5)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    cfg = tmp_path / "student.cfg"
    assert export_darknet(state, tmp_path / "student.weights") == ("yolov3-tiny", cfg)
    assert cfg.read_text() == yolov3_tiny_cfg()
    read = yolov3_tiny()
    read_weights(read, tmp_path / "student.weights")
    images = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(network(images), read(images), strict=True))
    with pytest.raises(ValueError, match="another network"):
        export_darknet({"fc1.weight": np.zeros((3, 3))}, tmp_path / "x.weights")
    with pytest.raises(ValueError, match="does not fit"):
        export_darknet({**state, "c0.weight": np.zeros((3, 3))}, tmp_path / "x.weights")
    with pytest.raises(ValueError, match=r"another suffix"):
        export_darknet(state, tmp_path / "x.cfg")
    (tmp_path / "x.cfg").write_text("[net]\n")
    with pytest.raises(ValueError, match=r"x\.cfg: another cfg lies there"):
        export_darknet(state, tmp_path / "x.weights")
    assert not (tmp_path / "x.weights").exists()
    assert (tmp_path / "x.cfg").read_text() == "[net]\n"


def test_the_network_can_be_trained_and_copied() -> None:
    from copy import deepcopy

    network = small().train()
    copied = deepcopy(network)
    sum(F.mse_loss(raw, torch.zeros_like(raw)) for raw in copied(torch.rand(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_command_line_exports_a_delib_file(tmp_path) -> None:
    network = random_weights(yolov3_tiny(), seed=6)
    encode.write(tmp_path / "s.delib", {name: tensor.numpy() for name, tensor in network.state_dict().items()})
    command = ["export", str(tmp_path / "s.delib"), "--format", "darknet", str(tmp_path / "s.weights")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    write_weights(network, tmp_path / "expected.weights")
    assert (tmp_path / "s.weights").read_bytes() == (tmp_path / "expected.weights").read_bytes()
    _, by_darknet, by_opencv = result.output.strip().splitlines()
    assert f"{tmp_path / 's.cfg'} {tmp_path / 's.weights'}" in by_darknet
    names = eval(by_opencv.split("readNetFromDarknet")[1])
    read = load_yolo(*names)
    assert torch.equal(read.c0.weight, network.c0.weight)
    with pytest.raises(ValueError, match=r"name its \.weights"):
        load_yolo(names[0])
    assert CliRunner().invoke(app, [*command[:3], "onnx", command[4]]).exit_code == 2
