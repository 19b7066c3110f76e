"""Moments, reconstructions and costs against the layers' own outputs and dense least squares."""

from importlib import import_module
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from delib.layerwise.admm import admm
from delib.layerwise.reconstruct import Moments, input_vectors, moments, output_vectors, reconstruct, removal_costs
from delib.nn.layers import matrix_of, put_matrix, weight_of, with_bias

module = import_module("delib.layerwise.reconstruct")  # the wing hands on the function by this name
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (9, 6)),
    "linear on sequences": (lambda: nn.Linear(6, 5, bias=False), (4, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (5, 3, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (3, 4, 6, 5)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", bias=False), (3, 2, 6, 5)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2, padding=2), (3, 4, 9, 8)),
    "conv2d depthwise, reflected": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        (3, 4, 7, 7),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (2, 2, 4, 3, 5)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A student and a teacher that differ, as networks of one layer named "0", and inputs."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return nn.Sequential(make()), nn.Sequential(make()), torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_unfolded_inputs_times_the_matrix_are_the_layers_outputs(name: str) -> None:
    student, _, inputs = pair(name)
    layer = student[0]
    vectors = input_vectors(layer, inputs)
    matrix = matrix_of(layer).view(len(vectors), -1, vectors.shape[-1])
    outputs = torch.cat([m @ v.T for m, v in zip(matrix, vectors, strict=True)])
    axis = -1 if isinstance(layer, nn.Linear) else 1
    assert torch.allclose(outputs, layer(inputs).movedim(axis, 0).flatten(1), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("piece", [1, 1 << 24])
def test_the_error_is_the_squared_difference_of_outputs(name: str, piece: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    student, teacher, inputs = pair(name)
    sums = moments(student, teacher, "0", inputs, batch=2)
    axis = -1 if isinstance(student[0], nn.Linear) else 1
    direct = (student(inputs) - teacher(inputs)).movedim(axis, 0).flatten(1).square().sum(1)
    assert torch.allclose(sums.error(matrix_of(student[0])), direct.double(), rtol=1e-4)


@pytest.mark.parametrize("name", ["conv2d", "conv2d grouped"])
@pytest.mark.parametrize("piece", [1, 1 << 24])
def test_positions_count_by_their_weights(name: str, piece: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    student, teacher, inputs = pair(name)
    answers = teacher(inputs)
    sums = moments(student, teacher, "0", inputs, batch=2, position_weights=answers[:, 0].abs())
    direct = ((student(inputs) - answers).square() * answers[:, :1].abs()).movedim(1, 0).flatten(1).sum(1)
    assert torch.allclose(sums.error(matrix_of(student[0])), direct.double(), rtol=1e-4)


def test_all_uses_of_a_layer_count_and_nothing_runs_behind_the_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
            self.behind = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(self.inner(x).relu())
            self.behind += len(y)
            return self.last(y)

    torch.manual_seed(0)
    net, inputs = Twice(), torch.randn(6, 4)
    sums = moments(net, net, "inner", inputs, batch=4)
    x = torch.cat([inputs, net.inner(inputs).relu()])
    x = torch.cat([x, torch.ones(12, 1)], 1)
    assert sums.count == 12 and torch.allclose(sums.gram[0], (x.T @ x).double(), rtol=1e-5)
    assert net.behind == 1  # to see how often the layer is used


def test_enough_vectors_are_enough() -> None:
    student, teacher, inputs = pair("conv2d")  # 30 positions an input
    few, all_ = (moments(student, teacher, "0", inputs, batch=1, enough=n) for n in (31, 10_000))
    first = moments(student, teacher, "0", inputs[:2])
    assert (few.count, all_.count) == (60, 90)
    assert (few.inputs, all_.inputs) == (2, 3)
    assert torch.allclose(few.gram, first.gram, rtol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("large", [0, 150], ids=["conjugate gradients", "Cholesky"])
def test_a_reconstruction_is_least_squares_on_the_support(name: str, large: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", large)
    student, teacher, _ = pair(name)
    inputs = torch.randn(40, *LAYERS[name][1][1:])
    layer = student[0]
    alive = with_bias(torch.rand(weight_of(layer).shape) < 0.5, layer)
    fitted = reconstruct(moments(student, teacher, "0", inputs), alive, matrix_of(layer), ridge=1e-9)
    vectors = input_vectors(layer, inputs).double()
    answers = output_vectors(teacher[0], teacher(inputs)).double()
    for r, row in enumerate(fitted):
        columns = alive[r].nonzero().squeeze(1)
        x = vectors[r // (len(fitted) // len(vectors))][:, columns]
        best = torch.linalg.lstsq(x, answers[:, r : r + 1]).solution[:, 0]
        assert torch.allclose(row[columns].double(), best, atol=2e-3)
        assert (row[~alive[r]] == 0).all()


def problem(rows: int = 3, k: int = 7, seed: int = 0) -> tuple[Moments, Tensor]:
    """Moments of correlated inputs whose own matrix is the target, so that its error is zero."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(50, k, generator=chance).double() @ torch.randn(k, k, generator=chance).double()
    matrix = torch.randn(rows, k, generator=chance).double()
    gram = x.T @ x
    cross = matrix @ gram
    return Moments(gram[None], cross, (cross * matrix).sum(1), 50), matrix


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.1, 1.0))
def test_nothing_on_the_same_support_fits_better_than_the_reconstruct(seed: int, density: float) -> None:
    sums, matrix = problem(seed=seed)
    support = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed)) < density
    fitted = reconstruct(sums, support, matrix, ridge=1e-10)
    other = (fitted + 0.1 * torch.randn_like(fitted)) * support
    assert (sums.error(fitted) <= sums.error(other) + 1e-6).all()
    assert (sums.error(fitted) <= sums.error(matrix * support) + 1e-6).all()


@pytest.mark.parametrize("full", [True, False])
def test_removal_costs_are_what_the_error_rises_by(full: bool) -> None:
    sums, matrix = problem()
    support = torch.ones_like(matrix, dtype=torch.bool)
    if not full:
        support[0, 2] = support[1, 4] = support[1, 5] = False
    fitted = reconstruct(sums, support, matrix, ridge=1e-12)
    costs = removal_costs(sums, support, fitted, ridge=1e-12)
    for r, j in [(r, j) for r in range(3) for j in range(7)]:
        if not support[r, j]:
            assert costs[r, j] == torch.inf
            continue
        without = support.clone()
        without[r, j] = False
        rise = (sums.error(reconstruct(sums, without, matrix, ridge=1e-12)) - sums.error(fitted))[r]
        assert float(costs[r, j]) == pytest.approx(float(rise), rel=1e-5)


def test_admm_finds_nearly_the_best_of_all_supports() -> None:
    """Among the best 5% of all C(12, 5) supports in each of several small problems with strongly correlated inputs."""
    for seed in range(6):
        sums, matrix = problem(rows=2, k=6, seed=seed)
        support, _ = admm(sums, matrix, 5, ridge=1e-9)
        assert int(support.sum()) == 5
        errors = []
        for chosen in combinations(range(12), 5):
            mask = torch.zeros(12, dtype=torch.bool)
            mask[list(chosen)] = True
            errors.append(float(sums.error(reconstruct(sums, mask.view(2, 6), matrix, ridge=1e-9)).sum()))
        own = float(sums.error(reconstruct(sums, support, matrix, ridge=1e-9)).sum())
        assert sum(e < own for e in errors) <= 0.05 * len(errors)


def test_admm_weakens_a_penalty_that_is_too_strong_for_the_support_to_move(monkeypatch) -> None:
    sums, matrix = problem(rows=64, k=64)
    monkeypatch.setattr(import_module("delib.layerwise.admm"), "FIRST_PENALTY", 1e5)
    start, _ = admm(sums, matrix, 1200, iterations=0)
    support, _ = admm(sums, matrix, 1200)
    errors = [float(sums.error(reconstruct(sums, mask, matrix)).sum()) for mask in (start, support)]
    assert errors[1] < 0.7 * errors[0]


def test_admm_keeps_to_what_is_allowed_and_spares_the_bias() -> None:
    student, teacher, inputs = pair("conv2d grouped")
    sums = moments(student, teacher, "0", inputs)
    allowed = with_bias(torch.rand(weight_of(student[0]).shape) < 0.5, student[0])
    support, strength = admm(sums, matrix_of(student[0]), 20, allowed=allowed)
    assert int(support[:, :-1].sum()) == 20
    assert support[:, -1].all()
    assert not (support & ~allowed).any()
    assert (strength >= 0).all()


def test_errors_of_important_rows_weigh_more() -> None:
    sums, matrix = problem(rows=4, k=7)
    weights = torch.tensor([100.0, 1.0, 1.0, 1.0])
    even, _ = admm(sums, matrix, 12)
    uneven, _ = admm(sums, matrix, 12, weights)
    assert uneven[0].sum() > even[0].sum()


def test_a_matrix_goes_back_as_it_came() -> None:
    for name in LAYERS:
        student, _, _ = pair(name)
        before = {key: value.clone() for key, value in student.state_dict().items()}
        matrix = matrix_of(student[0])
        put_matrix(student[0], matrix * 2)
        assert all(torch.equal(value, before[key] * 2) for key, value in student.state_dict().items())


def test_other_layers_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="Embedding"):
        input_vectors(nn.Embedding(3, 4), torch.zeros(1, dtype=torch.long))
