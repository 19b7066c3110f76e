"""Boxes read out anew: the least squares it claims to be, and nothing else of the network changed."""

import copy

import pytest
import torch
from torch import nn

from delib import readout
from delib.darknet import Head
from delib.detect_loss import focus
from delib.networks import weight_layers, weight_of
from delib.quantize import quantize_weight
from delib.readout import BOX, added, read_boxes

HEADS = [Head(((10.0, 14.0), (23.0, 27.0)), 3), Head(((30.0, 30.0),), 3)]
INPUTS = [torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
NAMES = ["before_coarse", "coarse", "before_fine", "fine"]


class TwoHeads(nn.Module):
    """Two heads, each behind a layer of its own whose channels differ in size by far."""

    def __init__(self, seed: int, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.before_coarse, self.coarse = nn.Conv2d(3, 10, 4, stride=4), nn.Conv2d(10, 16, 1)
        self.before_fine, self.fine = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 1)
        self.act = act
        with torch.no_grad():
            for layer in (self.before_coarse, self.before_fine):
                layer.weight.mul_(torch.logspace(-1, 1, len(layer.weight))[:, None, None, None])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.coarse(self.act(self.before_coarse(x))), self.fine(self.act(self.before_fine(x)))]


def rounded(network: nn.Module, bits: int = 4) -> dict:
    """Round the network in place; its levels by layer."""
    levels = {}
    for name, layer in weight_layers(network).items():
        levels[name] = quantize_weight(weight_of(layer).numpy(), bits, scaled=True)
        weight_of(layer).copy_(torch.from_numpy(levels[name].dense()))
    return levels


def pair(act: nn.Module | None = None, bits: int = 4) -> tuple[TwoHeads, TwoHeads, dict]:
    """A teacher, and a rounded student that sees other features and has forgotten most of where boxes lie."""
    teacher = TwoHeads(0, act or nn.LeakyReLU(0.1))
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for name in NAMES:
            weight = student.get_submodule(name).weight
            weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.3)
    for name, head in zip(("coarse", "fine"), HEADS, strict=True):
        weight_of(student.get_submodule(name))[boxes(head)] *= torch.rand(1) * 0.2
    return teacher, student, rounded(student, bits)


def boxes(head: Head) -> list[int]:
    return [a * (5 + head.classes) + r for a in range(len(head.anchors)) for r in range(BOX)]


@torch.no_grad()
def box_errors(student: nn.Module, teacher: nn.Module) -> list[torch.Tensor]:
    """For every head the weighted squared error of each row of boxes, written out."""
    x = torch.cat(INPUTS)
    errors = []
    for head, ours, theirs in zip(HEADS, student(x), teacher(x), strict=True):
        for row in boxes(head):
            present = theirs[:, row - row % (5 + head.classes) + 4].sigmoid()
            y = theirs[:, row]
            slope = y.sigmoid() * (1 - y.sigmoid()) if row % (5 + head.classes) < 2 else torch.ones_like(y)
            errors.append((present * (present > readout.FAINT) * slope**2 * (ours[:, row] - y) ** 2).sum())
    return errors


def test_rows_of_boxes_get_much_closer_to_the_teachers() -> None:
    teacher, student, levels = pair()
    before = sum(box_errors(student, teacher))
    read_boxes(student, teacher, HEADS, iter(INPUTS), focus(HEADS), levels)
    assert sum(box_errors(student, teacher)) < 0.5 * before


def test_with_all_weights_and_fine_levels_it_is_weighted_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "SURVIVORS", 1.0)
    monkeypatch.setattr(readout, "RIDGE", 1e-9)
    teacher, student, levels = pair(bits=12)
    x = torch.cat(INPUTS)
    with torch.no_grad():
        features = student.act(student.before_fine(x)).double()
        y, slope = teacher(x)[1][:, 0].double(), lambda v: v.sigmoid() * (1 - v.sigmoid())
        present = teacher(x)[1][:, 4].double().sigmoid()
    vectors = torch.cat([features, torch.ones_like(features[:, :1])], 1).movedim(1, -1).reshape(-1, 9)
    roots = (present * (present > readout.FAINT)).sqrt().flatten() * slope(y).flatten()
    best = torch.linalg.lstsq(vectors * roots[:, None], y.flatten() * roots).solution
    read_boxes(student, teacher, HEADS, iter(INPUTS), focus(HEADS), levels, bits=12)
    with torch.no_grad():
        answer = student(x)[1][:, 0].flatten().double()
    assert (answer - vectors @ best).abs().max() < 0.02 * (vectors @ best).std()


def test_other_answers_stay_and_levels_are_what_the_network_holds() -> None:
    teacher, student, levels = pair()
    x = torch.cat(INPUTS)
    room, before = added(student, HEADS, x[:1]), copy.deepcopy(student)
    changed = read_boxes(student, teacher, HEADS, iter(INPUTS), focus(HEADS), levels)
    assert list(changed) == NAMES
    for name in NAMES:
        assert (weight_of(student.get_submodule(name)).numpy() == changed[name].dense()).all()
        assert len(changed[name].codebook) <= 16
    for name, head in zip(("coarse", "fine"), HEADS, strict=True):
        weight = weight_of(student.get_submodule(name))
        assert (weight[boxes(head)] != 0).sum() <= len(boxes(head)) * round(0.5 * weight.shape[1])
    count = lambda net: sum(int((weight_of(m) != 0).sum()) for m in weight_layers(net).values())  # noqa: E731
    assert count(student) - count(before) <= room
    with torch.no_grad():
        for head, now, then in zip(HEADS, student(x), before(x), strict=True):
            others = [r for r in range(now.shape[1]) if r not in boxes(head)]
            assert (now - then)[:, others].square().mean() < 0.01 * then[:, others].var()


def test_a_layer_before_is_scaled_only_where_nothing_else_changes() -> None:
    teacher, student, levels = pair(nn.SiLU())
    before = copy.deepcopy(student)
    changed = read_boxes(student, teacher, HEADS, iter(INPUTS), focus(HEADS), levels)
    assert list(changed) == ["coarse", "fine"]
    for name in ("before_coarse", "before_fine"):
        assert torch.equal(weight_of(student.get_submodule(name)), weight_of(before.get_submodule(name)))


def test_heads_that_see_more_than_one_cell_are_refused() -> None:
    teacher, student, levels = pair()
    for net in (teacher, student):
        net.fine = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(ValueError, match="'fine' is no 1 x 1 convolution"):
        read_boxes(student, teacher, HEADS, iter(INPUTS), focus(HEADS), levels)
    with pytest.raises(ValueError, match="got no input"):
        read_boxes(student, teacher, HEADS, iter([]), focus(HEADS), levels)
