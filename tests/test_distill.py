"""The trainer: nearer to the teacher, zeros held, quantised weights trained, frozen ones left, resumable to the bit."""

import copy
import importlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delib.detection.darknet import yolov3_tiny
from delib.distillation import FakeQuantization, GradualPruning, Objective, RateAwareQuantization, Recipe, distill
from delib.distillation.distill import _Batches, feature_error
from delib.layerwise import finalize, quantize
from delib.nn import checkpoint, hooks
from delib.nn.batchnorm import folded
from delib.nn.divergence import kl, mse
from delib.nn.hooks import first_chain, replayed, watched, watched_calls
from delib.nn.layers import hold, weight_layers, weight_of


def pair() -> tuple[nn.Sequential, nn.Sequential, dict[str, Tensor]]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    student = copy.deepcopy(teacher)
    masks = {n: torch.rand_like(weight_of(m)) < 0.6 for n, m in weight_layers(student).items()}
    for name, mask in masks.items():
        weight_of(student.get_submodule(name)).mul_(mask)
    return student, teacher, masks


def inputs(count: int, chance: torch.Generator) -> Tensor:
    return torch.randn(count, 6, generator=chance)


TEST = torch.randn(500, 6, generator=torch.Generator().manual_seed(9))
SQUARES = Objective(mse)
RECIPE = Recipe(steps=200, batch=32, rate=0.02)


@torch.no_grad()
def error(student: nn.Module, teacher: nn.Module) -> float:
    return float(mse(student(TEST), teacher(TEST)))


def zeros_held(student: nn.Module, masks: dict[str, Tensor]) -> bool:
    return all(not weight_of(student.get_submodule(name))[~mask].any() for name, mask in masks.items())


def test_the_student_nears_the_teacher_within_its_masks() -> None:
    student, teacher, masks = pair()
    before = error(student, teacher)
    losses = distill(student, teacher, inputs, RECIPE, objective=replace(SQUARES, features=["1", "3"]))
    assert error(student, teacher) < 0.5 * before
    assert zeros_held(student, masks)
    assert len(losses) == 200
    assert losses[-1] < losses[0]
    assert not student.training


def test_defaults_recover_a_classifier_on_a_tensor_of_inputs() -> None:
    student, teacher, masks = pair()
    before = float(kl(student(TEST), teacher(TEST)).detach())
    distill(student, teacher, inputs(1000, torch.Generator().manual_seed(1)))
    assert float(kl(student(TEST), teacher(TEST)).detach()) < 0.5 * before
    assert zeros_held(student, masks)


def test_zeros_hold_in_every_step() -> None:
    student, teacher, masks = pair()
    held = []
    hook = student.register_forward_pre_hook(lambda *_: held.append(zeros_held(student, masks)))
    distill(student, teacher, inputs, replace(RECIPE, steps=50), objective=SQUARES)
    hook.remove()
    assert held == [True] * 50


def test_the_same_seed_distils_alike_and_the_teacher_does_not_move() -> None:
    ends = {}
    for seed in (7, 7, 8):
        student, teacher, _ = pair()
        before = copy.deepcopy(teacher.state_dict())
        distill(student, teacher, TEST, replace(RECIPE, steps=10), seed=seed)
        assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
        same = [torch.equal(t, ends[seed][n]) for n, t in student.state_dict().items()] if seed in ends else [True]
        assert all(same)
        ends[seed] = student.state_dict()
    assert not torch.equal(ends[7]["0.weight"], ends[8]["0.weight"])


def test_biases_of_folded_norms_learn_too() -> None:
    """Folding gives layers biases that ask for no gradient."""
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    plain = folded(teacher, {"0": "1"})
    student = copy.deepcopy(plain)
    before = student[0].bias.detach().clone()
    weight_of(student[3]).mul_(0.5)
    distill(
        student,
        plain,
        lambda n, chance: torch.rand(n, 3, 6, 6, generator=chance),
        replace(RECIPE, steps=5),
        objective=SQUARES,
    )
    assert (student[0].bias != before).any()


def test_no_inputs_is_said() -> None:
    student, teacher, _ = pair()
    with pytest.raises(ValueError, match="got none"):
        distill(student, teacher, TEST[:0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", -1), ("batch", 0), ("rate", -0.1), ("average", 1.0), ("horizon", 0), ("uses", 0), ("minutes", -1.0)],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})


def test_steps_are_those_of_adam_in_units_of_outputs_and_averaged() -> None:
    """The reference: PyTorch's Adam on weights divided by their rows' root mean squares, dead gradients zeroed."""
    student, teacher, masks = pair()
    reference = copy.deepcopy(student)
    recipe = replace(RECIPE, steps=60, average=0.9, horizon=20)
    distill(student, teacher, inputs, recipe, objective=SQUARES)
    named = dict(reference.named_parameters())
    sizes = {n: (p.square().sum(-1, True) / (p != 0).sum(-1, True)).sqrt().detach() for n, p in named.items()}
    values = {n: (p / sizes[n]).detach().requires_grad_() for n, p in named.items()}
    adam = torch.optim.Adam(values.values(), betas=(0.9, 1 - 1 / 20))
    path = []
    for step in range(60):
        x = inputs(32, torch.Generator().manual_seed(step))
        loss = mse(
            torch.func.functional_call(reference, {n: v * sizes[n] for n, v in values.items()}, (x,)), teacher(x)
        )
        adam.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            values[f"{name}.weight"].grad.mul_(mask)
        adam.param_groups[0]["lr"] = 0.02 * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / 60))
        adam.step()
        path.append({n: v.detach() * sizes[n] for n, v in values.items()})
    average = path[0]
    for count, each in enumerate(path[1:], 2):
        weight = max(0.1, 1 / count)
        average = {n: (1 - weight) * average[n] + weight * each[n] for n in each}
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name], rtol=1e-3, atol=1e-5)


def test_half_precision_multiplies_but_neither_stores_nor_sums() -> None:
    ends = {}
    for precision in (torch.float32, torch.bfloat16):
        student, teacher, masks = pair()
        before = error(student, teacher)
        seen: list[torch.dtype] = []
        hook = student[2].register_forward_hook(lambda *call, seen=seen: seen.append(call[2].dtype))
        objective = replace(SQUARES, features=["1", "3"], precision=precision)
        losses = distill(student, teacher, inputs, RECIPE, objective=objective)
        hook.remove()
        assert set(seen) == {precision}
        assert all(p.dtype == torch.float32 for p in student.parameters())
        assert zeros_held(student, masks)
        ends[precision] = error(student, teacher)
        assert losses[-1] < losses[0]
    assert ends[torch.bfloat16] == pytest.approx(ends[torch.float32], rel=0.2)
    assert ends[torch.bfloat16] < 0.5 * before


def test_training_with_quantised_weights_beats_quantising_afterwards() -> None:
    bits, afterwards, within = 2, 0.0, 0.0
    for seed in range(3):
        student, teacher, _ = pair()
        recipe = replace(RECIPE, steps=300)
        distill(student, teacher, inputs, recipe, objective=SQUARES, seed=seed)
        afterwards += error(quantize(student, bits, scaled=True).network(student), teacher)
        student, teacher, _ = pair()
        fake = FakeQuantization(bits)
        distill(student, teacher, inputs, recipe, objective=SQUARES, seed=seed, during=fake)
        within += error(finalize(student, fake.tensors(student), bits).network(student), teacher)
    assert within < 0.9 * afterwards


def test_frozen_modules_do_not_move_and_remembered_batches_train_as_well() -> None:
    student, teacher, _ = pair()
    before, first = error(student, teacher), student[0].weight.detach().clone()
    drawn = []

    def counted(count: int, chance: torch.Generator) -> Tensor:
        drawn.append(count)
        return inputs(count, chance)

    objective = replace(SQUARES, frozen=["0", "1"], features=["3"])
    distill(student, teacher, counted, replace(RECIPE, uses=4, memory=10), objective=objective)
    assert torch.equal(student[0].weight, first)
    assert error(student, teacher) < before
    assert all(p.requires_grad for p in student.parameters())
    assert len(drawn) == 50


DURING = {
    "alone": lambda: None,
    "quantised": lambda: FakeQuantization(2),
    "rated": lambda: RateAwareQuantization(2, multiplier=1e-3, again=(40, 80)),
    "pruned": lambda: GradualPruning(150, every=20),
}


calls = {"made": 0, "stop": -1}


def failing(student: Tensor, teacher: Tensor) -> Tensor:
    calls["made"] += 1
    if calls["made"] == calls["stop"]:
        raise KeyboardInterrupt
    return mse(student, teacher)


@pytest.mark.parametrize("uses", [1, 4])
@pytest.mark.parametrize("during", DURING.values(), ids=DURING)
def test_interrupted_work_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: Callable[[], Any], uses: int
) -> None:
    monkeypatch.setattr(checkpoint, "SAVE", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)
    recipe, ends = replace(RECIPE, steps=120, uses=uses, memory=5), []
    for name, stops in (("a", [-1]), ("b", [70, -1])):
        calls["made"] = 0
        for calls["stop"] in stops:
            student, teacher, _ = pair()
            objective, pruning = replace(SQUARES, divergence=failing, frozen=["0"]), during()
            with suppress(KeyboardInterrupt):
                file = tmp_path / name
                losses = distill(student, teacher, inputs, recipe, objective=objective, during=pruning, checkpoint=file)
        ends.append((calls["made"], student.state_dict(), losses, getattr(pruning, "cycles", None)))
    assert ends[1][0] <= ends[0][0] + 10, "what was saved is not done again"
    assert all(torch.equal(ends[0][1][n], ends[1][1][n]) for n in ends[0][1])
    assert ends[0][2:] == ends[1][2:]


@torch.no_grad()
def test_a_replayed_prefix_gives_exactly_what_the_network_does() -> None:
    student, _, _ = pair()
    wanted = student(TEST)
    with watched(student, ["1"]) as got:
        student(TEST)
    with replayed(student, ["0", "1"], got["1"]):
        assert torch.equal(student(torch.zeros(1)), wanted)
    assert torch.equal(student(TEST), wanted)


@torch.no_grad()
def test_calls_are_what_a_layer_receives_and_returns_and_the_pass_stops_there() -> None:
    student, _, _ = pair()
    network = nn.Sequential(student[2], student[2], student[3])
    x = torch.randn(5, 16)
    once = student[2](x)
    (first, second) = hooks.calls(network, student[2], x)
    assert torch.equal(first[0], x)
    assert torch.equal(first[1], once)
    assert torch.equal(second[0], once)
    with watched_calls([student[3]]) as ran:
        assert len(hooks.calls(network, student[2], x, most=1)) == 1
    assert not ran
    assert not any(module._forward_hooks for module in network.modules())


def test_feature_error_is_relative_and_summed() -> None:
    ones = torch.ones(4)
    assert float(feature_error({"a": ones, "b": 3 * ones}, {"a": 2 * ones, "b": 3 * ones})) == pytest.approx(0.25)


def test_feature_errors_count_by_the_weights_of_positions() -> None:
    wanted, got = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    got[..., :2] = 2
    left = torch.zeros(1, 2, 2)
    left[..., 0] = 1
    assert float(feature_error({"a": got}, {"a": wanted})) == pytest.approx(0.5)
    assert float(feature_error({"a": got}, {"a": wanted}, left)) == pytest.approx(1)
    assert float(feature_error({"a": got}, {"a": wanted}, 1 - left)) == pytest.approx(0)


@pytest.mark.parametrize("during", DURING.values(), ids=DURING)
def test_the_order_of_memory_makes_no_difference(during: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    ends = []
    for order in (torch.contiguous_format, torch.channels_last):
        student = copy.deepcopy(teacher)
        masks = {n: weight_of(m) > 0 for n, m in weight_layers(student).items()}
        hold(student, masks)
        student.to(memory_format=order)
        views = lambda n, chance, order=order: torch.rand(n, 3, 6, 6, generator=chance).to(memory_format=order)  # noqa: E731
        objective = replace(SQUARES, features=["1"], position_weights=lambda answer: answer[:, 0].abs())
        distill(student, teacher, views, replace(RECIPE, steps=30), objective=objective, during=during())
        assert zeros_held(student, masks)
        assert student[0].weight.is_contiguous(memory_format=order)
        ends.append(student.state_dict())
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-4) for n in ends[0])


class Skipping(nn.Module):
    """Its second block's output is needed twice, its third has two branches."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda a, b: nn.Sequential(nn.Linear(a, b), nn.ReLU())  # noqa: E731
        self.one, self.two, self.left, self.right, self.last = block(6, 6), block(6, 6), *(block(6, 6) for _ in "lrl")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        second = self.two(self.one(x))
        answer: torch.Tensor = self.last(self.left(second) + self.right(second)) + second
        return answer


CHAINS = [
    (["one.0"], (["one"], ["one.0"])),
    (["one.0", "two.0"], (["one", "two"], ["one.0", "two.0"])),
    (["one.0", "two.0", "left.0"], (["one", "two"], ["one.0", "two.0"])),
    (["one.0", "two.0", "left.0", "right.0"], (["one", "two"], ["one.0", "two.0"])),
    (["two.0"], ([], [])),
    ([], ([], [])),
]


@pytest.mark.parametrize(("layers", "wanted"), CHAINS)
def test_the_first_chain_is_what_may_be_frozen(layers: list[str], wanted: tuple[list[str], list[str]]) -> None:
    torch.manual_seed(0)
    network = Skipping().eval()
    assert first_chain(network, layers, torch.randn(3, 6)) == wanted


def test_the_first_chain_ends_where_a_later_module_needs_what_is_inside() -> None:
    torch.manual_seed(0)
    network = Skipping().eval()
    network.forward = lambda x: network.last(network.two(first := network.one(x)) + first)  # type: ignore[method-assign]
    assert first_chain(network, ["one.0", "two.0"], torch.randn(3, 6)) == (["one"], ["one.0"])


def test_the_first_chain_of_detectors() -> None:
    tiny = yolov3_tiny().eval()
    assert first_chain(tiny, ["c0", "c2", "c4"], torch.rand(1, 3, 64, 64))[1] == ["c0", "c2", "c4"]
    student, _, _ = pair()
    assert first_chain(student, ["0", "2"], TEST[:2]) == (["0", "1", "2", "3"], ["0", "2"])


@pytest.mark.parametrize(("uses", "room", "most"), [(1, 100.0, 1), (4, 100.0, 10), (4, 3.5, 3), (4, 0.0, 1)])
def test_no_more_batches_are_remembered_than_there_is_room_for(
    uses: int, room: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, _ = pair()
    recipe, objective = replace(RECIPE, uses=uses, memory=10), replace(SQUARES, features=["1"])
    values = recipe.batch * (6 + 3 + 16)  # inputs, answers and features
    monkeypatch.setattr(importlib.import_module("delib.distillation.distill"), "ROOM", int(room * 4 * values))
    batches, held = _Batches(student, teacher, inputs, recipe, objective, 0), []
    for step in range(60):
        batches.draw(step, fresh=False)
        held.append(len(batches.made))
    assert max(held) == most


def test_when_time_is_up_the_work_ends_at_the_average() -> None:
    student, teacher, _ = pair()
    before = error(student, teacher)
    losses = distill(student, teacher, inputs, replace(RECIPE, steps=100_000, minutes=0.01), objective=SQUARES)
    assert len(losses) < 100_000
    assert error(student, teacher) < before
