"""Criteria: each guesses the saliency of every weight of a layer, from what can be measured there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from delib.layerwise.admm import admm as sparse_least_squares
from delib.layerwise.reconstruct import Moments, removal_costs
from delib.nn.layers import matrix_to_weight, weight_to_matrix


@dataclass
class Site:
    """What a criterion may look at: one layer's weight [out, in, ...], its inputs [n, in, ...] on a fresh batch, and

    - ``alive``, a bool tensor in the weight's shape: which weights may survive (default: all);
    - ``survivors``, how many are to be left;
    - ``bias`` [out], if the layer has one;
    - ``moments`` of the layer over the calibration inputs and ``sensitivity`` [out], how strongly the network's
      divergence reacts to an error of each output (default: all alike). Both are measured when first asked for.
    """

    weight: Tensor
    inputs: Tensor
    alive: Tensor | None = None
    survivors: int = 0
    bias: Tensor | None = None
    measure_moments: Callable[[], Moments] | None = None
    measure_sensitivity: Callable[[], Tensor] | None = None

    @cached_property
    def moments(self) -> Moments:
        if self.measure_moments is None:
            raise ValueError("this criterion needs the layer's moments, and the site does not measure them")
        return self.measure_moments()

    @cached_property
    def sensitivity(self) -> Tensor:
        return (
            self.weight.new_ones(len(self.weight)) if self.measure_sensitivity is None else self.measure_sensitivity()
        )

    def after(self, weight: Tensor, bias: Tensor | None, alive: Tensor) -> Site:
        """The same site once its weights have changed; its inputs, and so its moments, are what they were."""
        site = replace(self, weight=weight.clone(), bias=None if bias is None else bias.clone(), alive=alive)
        site.moments, site.sensitivity = self.moments, self.sensitivity
        return site

    def living(self) -> Tensor:
        """``alive``, a copy, all True by default."""
        return torch.ones_like(self.weight, dtype=torch.bool) if self.alive is None else self.alive.clone()

    def matrix(self) -> Tensor:
        """The weight as [out, k], with the bias as the last column: the shape that ``moments`` has."""
        return weight_to_matrix(self.weight, self.bias)

    def support(self, dead: Tensor | None = None) -> Tensor:
        """``alive``, less the weights at flat indices ``dead``, as [out, k]; a bias is always alive."""
        alive = self.living()
        if dead is not None:
            alive.view(-1)[dead] = False
        return weight_to_matrix(alive, None if self.bias is None else torch.ones_like(self.bias, dtype=torch.bool))


# The saliency of every weight, in the weight's shape: non-negative; the least salient weights are proposed to die.
Criterion = Callable[[Site], Tensor]


def random(site: Site) -> Tensor:
    """All weights alike: blind evolution, the baseline that knows nothing."""
    return torch.ones_like(site.weight)


def magnitude(site: Site) -> Tensor:
    """|w|: small weights are guessed to matter little."""
    return site.weight.abs()


def activation(site: Site) -> Tensor:
    """|w| times the root mean square of the input that it multiplies (Wanda: Sun et al. 2023, eq. 1).

    The inputs' channel is dimension 1 of ``site.inputs``, or the last one where that does not fit the weight
    (a linear layer on sequences). Grouped convolutions share the mean over their groups' channels.
    """
    channels, inputs = site.weight.shape[1], site.inputs
    axis = 1 if inputs.shape[1] % channels == 0 and site.weight.dim() > 2 else inputs.dim() - 1
    others = [d for d in range(inputs.dim()) if d != axis]
    mean_square = inputs.float().square().mean(dim=others)
    rms = mean_square.view(-1, channels).mean(dim=0).sqrt()
    return site.weight.abs().mul_(rms.view(1, -1, *[1] * (site.weight.dim() - 2)))


def hessian(site: Site) -> Tensor:
    """√(w² H_jj): what zeroing a weight alone does to the divergence, to second order (LeCun, Denker and Solla 1989,
    section 2).

    The Hessian's diagonal is taken as the sensitivity of the output times Σ x² of the input (its Gauss-Newton
    approximation with both factors independent: Martens and Grosse 2015, section 3), so that it needs no labels.
    """
    moments, sensitivity = site.moments, site.sensitivity
    energy = moments.per_row(moments.gram.diagonal(dim1=1, dim2=2))
    return _in_shape(energy * site.matrix().square() * sensitivity[:, None], site)


def obs(site: Site) -> Tensor:
    """√(w² / [H⁻¹]_jj): as ``hessian``, after all other survivors have compensated (Hassibi and Stork 1993, eq. 5).

    The saliency of a dead weight, which may regrow, is what the fit would gain from it alone: (c - w G)_j² / G_jj.
    """
    moments, sensitivity = site.moments, site.sensitivity
    matrix = site.matrix()
    living = site.support() & (matrix != 0)
    if moments.bias:
        living[:, -1] = True
    energy = moments.per_row(moments.gram.diagonal(dim1=1, dim2=2))
    gains = (moments.cross - moments.apply(matrix.to(moments.gram.dtype))).square() / energy.clamp_min(1e-12)
    costs = torch.where(living, removal_costs(moments, living, matrix), gains)
    return _in_shape(costs * sensitivity[:, None], site)


def admm(site: Site) -> Tensor:
    """How firmly sparse least squares with ``site.survivors`` weights holds on to each (ALPS: Meng et al. 2024,
    algorithm 1)."""
    _, strength = sparse_least_squares(site.moments, site.matrix(), site.survivors, site.sensitivity, site.support())
    return _in_shape(strength.square(), site)


def _in_shape(costs: Tensor, site: Site) -> Tensor:
    return matrix_to_weight(costs.sqrt().to(site.weight.dtype), site.weight.shape)


CRITERIA: dict[str, Criterion] = {
    "random": random,
    "magnitude": magnitude,
    "activation": activation,
    "hessian": hessian,
    "obs": obs,
    "admm": admm,
}


def criterion_named(name: str) -> Criterion:
    """One of ``CRITERIA``. Raises ValueError with the choices if there is none of that name."""
    if name not in CRITERIA:
        raise ValueError(f"no criterion is called {name!r}; choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]
