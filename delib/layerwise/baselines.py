"""Baselines: published ways to sparsify a layer after training, written from their papers, to compare evolution with.

Each takes one layer's weight matrix [rows, k], the Gram matrix G = Σ x xᵀ [k, k] of its inputs and a sparsity, and
gives the sparse matrix. ``prune`` applies one to a network layer by layer, each on the inputs that the already sparse
layers before it deliver, as the papers do. Biases stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from delib.layerwise.admm import admm
from delib.layerwise.reconstruct import Moments, moments, reconstruct
from delib.nn.layers import weight_of

Baseline = Callable[..., Tensor]  # (weight, gram, sparsity, damping=...) -> the sparse matrix
DAMPING = 1e-2  # share of the diagonal's mean added to G, the default of SparseGPT's and ALPS's own code


def magnitude(weight: Tensor, gram: Tensor, sparsity: float, damping: float = DAMPING) -> Tensor:
    """The smallest weights of the layer go (torch.nn.utils.prune.l1_unstructured)."""
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    torch_prune.l1_unstructured(module, "weight", amount=round(sparsity * weight.numel()))
    torch_prune.remove(module, "weight")
    return module.weight.detach()


def wanda(weight: Tensor, gram: Tensor, sparsity: float, damping: float = DAMPING) -> Tensor:
    """In each row the weights of least |w|·‖x‖ go (Sun et al. 2023, eq. 1 and section 3)."""
    scores = weight.abs() * gram.diagonal().sqrt().to(weight.dtype)
    dead = scores.topk(round(sparsity * weight.shape[1]), dim=1, largest=False).indices
    return weight.scatter(1, dead, 0.0)


def sparsegpt(weight: Tensor, gram: Tensor, sparsity: float, damping: float = DAMPING, block: int = 128) -> Tensor:
    """Column by column: each block's mask by w²/U_jj², errors passed on (Frantar and Alistarh 2023, algorithm 1).

    U is the upper Cholesky factor of H⁻¹: U_jj times its row j, from j on, is the first row of the inverse of the
    remaining columns' Gram matrix, so that w²/U_jj² is what OBS says a removal costs with those columns to compensate.
    """
    weight = weight.to(gram.dtype).clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(gram, damping)))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for begin in range(0, weight.shape[1], block):
        end = min(begin + block, weight.shape[1])
        saliency = (weight[:, begin:end] / factor.diagonal()[begin:end]).square()
        dead = torch.zeros_like(saliency, dtype=torch.bool)
        dead.view(-1)[saliency.flatten().topk(round(sparsity * saliency.numel()), largest=False).indices] = True
        for j in range(begin, end):
            error = weight[:, j] * dead[:, j - begin] / factor[j, j]
            weight[:, j:] -= error[:, None] * factor[j, j:]
            weight[dead[:, j - begin], j] = 0
    return weight


def alps(weight: Tensor, gram: Tensor, sparsity: float, damping: float = DAMPING) -> Tensor:
    """The support by ADMM with a rising penalty, then least squares on it (Meng et al. 2024, algorithms 1 and 2).

    The paper ends with ten steps of conjugate gradients; here they are solved exactly, which can only lower the error.
    """
    problem = _itself(weight, gram)
    support, _ = admm(problem, weight, weight.numel() - round(sparsity * weight.numel()), ridge=damping)
    return reconstruct(problem, support, weight, damping)


def exact_obs(weight: Tensor, gram: Tensor, sparsity: float, damping: float = DAMPING) -> Tensor:
    """One weight after another goes, all others compensating (Frantar and Alistarh 2022, section 4: ExactOBS).

    Each row is emptied one weight at a time; over all rows the cheapest removals are then carried out (the paper's
    global step). Repeated OBS updates end in the constrained optimum, so the values come from least squares.
    """
    order, losses = obs_traces(weight, gram, damping)
    counts = cheapest_prefixes(losses, round(sparsity * weight.numel()))
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    support = rank >= counts[:, None]
    return reconstruct(_itself(weight, gram), support, weight, damping)


def obs_traces(weight: Tensor, gram: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """The order in which ExactOBS empties each row and the loss that each removal adds, both [rows, k].

    Removing weight j of a row costs w_j²/[H⁻¹]_jj; then w -= w_j/[H⁻¹]_jj · [H⁻¹]_j and H⁻¹ loses row and column j by
    one step of Gaussian elimination (ibid., lemma 1). The dead are dropped from H⁻¹ now and then to save work.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(gram, damping)))
    order = torch.empty(weight.shape, dtype=torch.long)
    losses = torch.empty(weight.shape, dtype=gram.dtype)
    for r, row in enumerate(weight.to(gram.dtype)):
        _empty_row(row.clone(), inverse.clone(), order[r], losses[r])
    return order, losses


def _empty_row(row: Tensor, inverse: Tensor, order: Tensor, losses: Tensor, every: int = 32) -> None:
    names = torch.arange(len(row))
    diagonal = inverse.diagonal()
    alive = torch.ones_like(row, dtype=torch.bool)
    for step in range(len(order)):
        costs = (row.square() / diagonal).masked_fill_(~alive, torch.inf)
        j = int(costs.argmin())
        order[step], losses[step] = names[j], costs[j]
        alive[j] = False
        column = inverse[j].clone()
        row.sub_(column, alpha=float(row[j] / column[j]))
        inverse.addr_(column, column, alpha=-1 / float(column[j]))
        inverse[j, j] = 1  # never read again; keeps the division above finite
        if step % every == every - 1:
            keep = alive.nonzero().squeeze(1)
            names, row, inverse = names[keep], row[keep], inverse[keep][:, keep].contiguous()
            diagonal, alive = inverse.diagonal(), torch.ones_like(row, dtype=torch.bool)


def cheapest_prefixes(losses: Tensor, removals: int) -> Tensor:
    """How many weights of each row to remove so that ``removals`` in total add the least loss, rows going in order:
    [rows].

    A removal that adds less than one before it in its row is counted with that one's loss, which it requires first.
    """
    required = losses.cummax(dim=1).values.flatten()
    chosen = torch.zeros_like(required, dtype=torch.bool)
    chosen[required.argsort(stable=True)[:removals]] = True
    return chosen.view_as(losses).sum(1)


BASELINES: dict[str, Baseline] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "alps": alps,
    "exact_obs": exact_obs,
}


@torch.no_grad()
def prune(network: nn.Module, inputs: Tensor, targets: Mapping[str, float], baseline: Baseline) -> nn.Module:
    """A copy of ``network`` whose layers named in ``targets`` have the sparsities given there, by a baseline."""
    student = copy.deepcopy(network).eval()
    for name, sparsity in targets.items():
        weight = weight_of(student.get_submodule(name))
        sums = moments(student, student, name, inputs)
        k = weight[0].numel()
        parts = weight.flatten(1).view(sums.groups, -1, k)
        pruned = [baseline(part, gram[:k, :k], sparsity) for part, gram in zip(parts, sums.gram, strict=True)]
        weight.copy_(torch.cat(pruned).view_as(weight))
    return student


def _damped(gram: Tensor, damping: float) -> Tensor:
    extra = damping * gram.diagonal().mean()
    return gram + extra * torch.eye(len(gram), dtype=gram.dtype)


def _itself(weight: Tensor, gram: Tensor) -> Moments:
    """The layer's own answers as the target: cross = W G."""
    weight = weight.to(gram.dtype)
    cross = weight @ gram
    return Moments(gram[None], cross, (cross * weight).sum(1), 0)
