"""What every detector offers, whichever network it is: the pipeline asks them all alike."""

import copy
from collections.abc import Callable

import pytest
import torch
from foreign import small
from torch import nn

from delib.coding import decode, encode
from delib.detection.coco import CLASSES
from delib.detection.darknet import yolov3_tiny
from delib.detection.detector import DetectionNetwork
from delib.detection.infer import detect
from delib.detection.ultralytics import class_names, load_ultra
from delib.distillation import FakeQuantization, GradualPruning, Objective, Recipe, distill
from delib.layerwise import Compression, compress, finalize
from delib.nn import folded, norm_pairs, sparsity, weight_layers
from delib.nn.hooks import watched

DETECTORS: dict[str, tuple[Callable[[], DetectionNetwork], int]] = {
    "yolov3-tiny": (yolov3_tiny, 2),
    "yolov5-seg": (small, 2),
    "yolov8n": (lambda: load_ultra("yolov8n.yaml"), 3),
    "yolo11n-seg": (lambda: load_ultra("yolo11n-seg.yaml"), 3),
}
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=DETECTORS)
def case(request: pytest.FixtureRequest) -> tuple[DetectionNetwork, int]:
    make, levels = DETECTORS[request.param]
    network = make().eval()
    return folded(network, norm_pairs(network, torch.zeros(1, 3, 64, 64))), levels


@torch.no_grad()
def test_outputs_come_by_level_and_say_what_they_mean(case) -> None:
    network, levels = case
    outputs = network(IMAGES)
    assert isinstance(network, DetectionNetwork)
    assert len(network.heads) == levels
    assert len(outputs) == levels + network.has_masks
    boxes, scores = network.decode(outputs, (64, 96))
    assert boxes.shape == (2, scores.shape[1], 4)
    assert scores.shape[2] == len(network.names)
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= 1
    finest = max(outputs[:levels], key=lambda raw: raw.shape[-1])
    maps = network.position_weights(0.25)(outputs)
    assert maps.shape == (2, *finest.shape[2:])
    assert float(maps.min()) >= 0.25
    assert float(maps.max()) <= 1.25
    if network.has_masks:
        masks = network.masks(outputs, 1, torch.tensor([0, scores.shape[1] - 1]))
        assert masks.shape == (2, 16, 24)


def test_the_divergence_is_none_from_itself_and_every_output_has_a_part_in_it(case) -> None:
    network, _ = case
    with torch.no_grad():
        teacher = network(IMAGES)
    assert float(network.divergence()(teacher, teacher)) == pytest.approx(0, abs=1e-4)
    student = [raw + 0.3 * torch.randn(raw.shape, generator=torch.Generator().manual_seed(1)) for raw in teacher]
    for raw in student:
        raw.requires_grad_()
    loss = network.divergence(background=0.01, boxes=12.0)(student, teacher)
    loss.backward()
    assert float(loss.detach()) > 0
    for raw in student:
        assert raw.grad is not None
        assert torch.isfinite(raw.grad).all()
        assert (raw.grad.abs().sum((0, 2, 3)) > 0).all(), "of every channel"


@torch.no_grad()
def test_activations_are_what_the_next_layers_read(case) -> None:
    network, _ = case
    layers = weight_layers(network)
    assert set(network.activations) <= set(layers)
    assert len(network.activations) >= len(layers) // 2
    with watched(network, list(network.activations.values())) as seen, watched(network, list(layers)) as raw:
        network(IMAGES)
    act = {"leaky": nn.LeakyReLU(0.1), "silu": nn.SiLU()}["leaky" if "act0" in seen else "silu"]
    for layer, activation in network.activations.items():
        assert torch.allclose(seen[activation], act(raw[layer]), atol=1e-4), layer


def test_a_shift_of_its_certainty_is_found_again(case) -> None:
    network, levels = case
    student = copy.deepcopy(network)
    biases = student.certainty_biases()
    if biases is None:
        heads = {"c15": 85, "c22": 85} if "c15" in weight_layers(student) else {"model.9.m.0": 16, "model.9.m.1": 16}
        biases = [student.get_submodule(name).bias.detach()[4::step] for name, step in heads.items()]
    for bias in biases:
        bias += 0.4
    assert [c.shift for c in network.calibrate(student, IMAGES)] == pytest.approx([-0.4] * levels, abs=1e-3)


def test_the_whole_pipeline_takes_it() -> None:
    """Least squares, pruning inside distillation, levels in the loop, calibration, a file, detections with masks."""
    teacher = small()
    pairs = norm_pairs(teacher, torch.zeros(1, 3, 64, 64))
    plain = folded(teacher, pairs)
    assert isinstance(plain, DetectionNetwork)
    options = {"position_weights": plain.position_weights(), "divergence": plain.divergence()}
    targets = dict.fromkeys(list(weight_layers(plain))[3:], 0.3)
    student, _ = compress(plain, IMAGES, targets, Compression(iterations=3), **options)
    objective = Objective(
        plain.divergence(0.004),
        features=list(plain.activations.values())[3:],
        position_weights=plain.position_weights(),
    )
    alive = {name: layer.weight.detach() != 0 for name, layer in weight_layers(student).items()}
    total = sum(mask.numel() for mask in alive.values())
    pruning = GradualPruning(total // 2, 0.6, 50, alive)
    losses = distill(student, plain, IMAGES, Recipe(4, 2), objective=objective, during=pruning)
    quantization = FakeQuantization(4)
    losses += distill(student, plain, IMAGES, Recipe(2, 2), objective=objective, during=quantization)
    assert all(torch.tensor(pair).isfinite().all() for pair in losses)
    with quantization.applied(student):
        plain.calibrate(student, IMAGES)
    held = decode(encode(finalize(student, quantization.tensors(student)))).network(like=plain)
    assert isinstance(held, DetectionNetwork)
    assert sparsity(held) >= 0.45
    photo = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    (found,) = detect(held, [photo], size=(64, 64), threshold=0.001)
    assert found.sketches is not None
    assert len(found.sketches) == len(found) > 0


def test_classes_have_coco_s_names_or_their_own() -> None:
    assert yolov3_tiny().names == CLASSES
    assert load_ultra("yolov8n.yaml").names[0]
    assert class_names(["a", "b"], 3) == ("a", "b", "class 2")
    assert class_names(7, 1) == ("class 0",)
