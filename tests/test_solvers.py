"""Conjugate gradients against dense solves, bisection against known roots."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delib.nn.solvers import bisect, conjugate_gradients


@pytest.mark.parametrize("preconditioned", [False, True])
def test_every_row_is_solved_with_its_own_matrix(preconditioned: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    roots = torch.randn(4, 12, 12, generator=chance).double()
    systems = roots @ roots.mT + torch.eye(12).double() * torch.logspace(-1, 2, 4).double()[:, None, None]
    right = torch.randn(4, 12, generator=chance).double()
    precondition = 1 / systems.diagonal(dim1=1, dim2=2) if preconditioned else None
    multiply = lambda x: (systems @ x[..., None])[..., 0]  # noqa: E731
    solution = conjugate_gradients(multiply, right, precondition=precondition, steps=60, tolerance=1e-12)
    assert torch.allclose(solution, torch.linalg.solve(systems, right), rtol=1e-6, atol=1e-8)


def test_it_stops_when_all_rows_are_near_enough() -> None:
    calls = []
    right = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    solution = conjugate_gradients(lambda x: calls.append(1) or 2 * x, right, steps=50)
    assert torch.equal(solution, right / 2)
    assert len(calls) == 1


@given(st.floats(-9.0, 9.0))
def test_bisection_finds_the_root_of_a_rising_function(root: float) -> None:
    assert bisect(lambda x: (x - root) ** 3 + x - root, -10.0, 10.0) == pytest.approx(root, abs=1e-9)
