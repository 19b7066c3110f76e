"""The long distillation: nearer to the teacher, masks held, rounded weights trained, frozen ones left, resumable."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from delib.distillation.distill import distil, feature_error
from delib.distillation.fake_quantize import Rounding
from delib.layerwise.compress import finished, quantize
from delib.nn.divergence import mse
from delib.nn.hooks import modules_before, replayed, watched
from delib.nn.layers import weight_layers, weight_of


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


@torch.no_grad()
def error(student: nn.Module, teacher: nn.Module) -> float:
    return float(mse(student(TEST), teacher(TEST)))


COMMON = {"inputs": inputs, "divergence": mse, "batch": 32, "rate": 0.02, "progress": False}


def test_the_student_nears_the_teacher_within_its_masks() -> None:
    student, teacher, masks = pair()
    before = error(student, teacher)
    losses = distil(student, teacher, masks, 0, steps=200, features=["1", "3"], **COMMON)
    assert error(student, teacher) < 0.5 * before
    assert all(not weight_of(student.get_submodule(n))[~m].any() for n, m in masks.items())
    assert len(losses) == 200
    assert losses[-1] < losses[0]


def test_half_precision_multiplies_but_neither_stores_nor_sums() -> None:
    ends = {}
    for precision in (torch.float32, torch.bfloat16):
        student, teacher, masks = pair()
        before = error(student, teacher)
        seen: list[torch.dtype] = []
        hook = student[2].register_forward_hook(lambda *call, seen=seen: seen.append(call[2].dtype))
        losses = distil(student, teacher, masks, 0, steps=200, features=["1", "3"], precision=precision, **COMMON)
        hook.remove()
        assert set(seen) == {precision}
        assert all(p.dtype == torch.float32 for p in student.parameters())
        assert all(not weight_of(student.get_submodule(n))[~m].any() for n, m in masks.items())
        ends[precision] = error(student, teacher)
        assert losses[-1] < losses[0]
    assert ends[torch.bfloat16] == pytest.approx(ends[torch.float32], rel=0.2)
    assert ends[torch.bfloat16] < 0.5 * before


@pytest.mark.parametrize("bits", [2, 3])
def test_training_with_rounding_beats_rounding_afterwards(bits: int) -> None:
    afterwards = within = 0.0
    for seed in range(3):
        student, teacher, masks = pair()
        distil(student, teacher, masks, seed, steps=300, **COMMON)
        afterwards += error(quantize(student, bits, scaled=True).network(student), teacher)
        student, teacher, masks = pair()
        rounding = Rounding(bits)
        distil(student, teacher, masks, seed, steps=300, rounding=rounding, **COMMON)
        within += error(finished(student, rounding.tensors(student), bits).network(student), teacher)
    assert within < 0.9 * afterwards


def test_frozen_modules_do_not_move_and_remembered_batches_train_as_well() -> None:
    student, teacher, masks = pair()
    before, first = error(student, teacher), student[0].weight.detach().clone()
    distil(student, teacher, masks, 0, steps=200, frozen=["0", "1"], uses=4, memory=10, features=["3"], **COMMON)
    assert torch.equal(student[0].weight, first)
    assert error(student, teacher) < before
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("bits", [None, 2])
def test_interrupted_work_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int | None
) -> None:
    monkeypatch.setattr("delib.distillation.distill.SAVE", 0.0)

    class Interrupted(Exception):
        pass

    def failing(count: int, chance: torch.Generator) -> Tensor:
        failing.calls += 1
        if failing.calls > 70:
            raise Interrupted
        return inputs(count, chance)

    failing.calls = 0
    ends = []
    for name, source in (("a", inputs), ("b", failing)):
        student, teacher, masks = pair()
        options = COMMON | {"steps": 120, "checkpoint": tmp_path / name}
        if source is failing:
            with pytest.raises(Interrupted):
                rounding = Rounding(bits) if bits else None
                distil(student, teacher, masks, 0, rounding=rounding, **options | {"inputs": failing})
            assert (tmp_path / name).is_file()
            student, teacher, masks = pair()
        distil(student, teacher, masks, 0, rounding=Rounding(bits) if bits else None, **options)
        ends.append(student.state_dict())
    assert all(torch.allclose(ends[0][n], ends[1][n]) for n in ends[0])


@torch.no_grad()
def test_a_replayed_prefix_gives_exactly_what_the_network_does() -> None:
    student, _, _ = pair()
    wanted = student(TEST)
    with watched(student, ["1"]) as got:
        student(TEST)
    with replayed(student, ["0", "1"], got["1"]):
        assert torch.equal(student(torch.zeros(1)), wanted)
    assert torch.equal(student(TEST), wanted)


def test_feature_error_is_relative_and_summed() -> None:
    ones = torch.ones(4)
    assert float(feature_error({"a": ones, "b": 3 * ones}, {"a": 2 * ones, "b": 3 * ones})) == pytest.approx(0.25)


def test_feature_errors_count_where_the_focus_lies() -> None:
    wanted, got = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    got[..., :2] = 2
    left = torch.zeros(1, 2, 2)
    left[..., 0] = 1
    assert float(feature_error({"a": got}, {"a": wanted})) == pytest.approx(0.5)
    assert float(feature_error({"a": got}, {"a": wanted}, left)) == pytest.approx(1)
    assert float(feature_error({"a": got}, {"a": wanted}, 1 - left)) == pytest.approx(0)


def test_the_order_of_memory_makes_no_difference() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    ends = []
    for order in (torch.contiguous_format, torch.channels_last):
        student = copy.deepcopy(teacher)
        masks = {n: weight_of(m) > 0 for n, m in weight_layers(student).items()}
        student.to(memory_format=order)
        views = lambda n, chance, order=order: torch.rand(n, 3, 6, 6, generator=chance).to(memory_format=order)  # noqa: E731
        options = COMMON | {"inputs": views, "steps": 30, "rounding": Rounding(2)}
        distil(student, teacher, masks, 0, focus=lambda answer: answer[:, 0].abs(), features=["1"], **options)
        assert all(not weight_of(student.get_submodule(n))[~m].any() for n, m in masks.items())
        ends.append(student.state_dict())
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-4) for n in ends[0])


def test_the_modules_before_a_layer_are_named_in_running_order() -> None:
    student, _, _ = pair()
    assert modules_before(student, "4", TEST[:2]) == ["0", "1", "2", "3"]


def test_when_time_is_up_the_work_ends_at_the_average() -> None:
    student, teacher, masks = pair()
    before = error(student, teacher)
    losses = distil(student, teacher, masks, 0, steps=100_000, minutes=0.01, **COMMON)
    assert len(losses) < 100_000
    assert error(student, teacher) < before
