"""Adam on a sparse network's survivors, with an average of their path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delib.distillation.recipe import Recipe
from delib.nn.layers import weight_keys

SMALLEST = 0.01  # unit of an output's weights at least, as a share of the whole parameter's root mean square
WARM_UP = 20  # steps over which the rate rises: Adam's first estimates of squared gradients are poor


class MaskedAdam:
    """Adam on a network's parameters, each written as unit · value; the optimizer works on the values.

    The unit of a weight is the root mean square of its output's survivors. Units of dead weights are zero, and with
    them the weights and their gradients: weights of weight layers that are zero stay so, unless a mask in ``regrowth``
    (True: may regrow; by layer) allows otherwise. Modules named in ``frozen`` are left out.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, frozen: Sequence[str], regrowth: Mapping[str, Tensor]
    ) -> None:
        self.recipe, self.count = recipe, 0
        still = tuple(f"{name}." for name in frozen)
        named = {name: p for name, p in network.named_parameters() if not name.startswith(still)}
        self.parameters = [parameter.detach() for parameter in named.values()]
        self.trained = [parameter.requires_grad_() for parameter in named.values()]  # biases of folded norms do not
        self.units = [_units(parameter) for parameter in self.parameters]
        index = {name: i for i, name in enumerate(named)}
        self.layers = {name: index[key] for name, key in weight_keys(network).items() if key in index}
        for name, i in self.layers.items():
            alive = self.parameters[i] != 0
            self.units[i] *= alive | regrowth[name] if name in regrowth else alive
        self.values = [torch.where(u > 0, p / u, 0) for p, u in zip(self.parameters, self.units, strict=True)]
        self.mean = [value.clone() for value in self.values]
        betas = (0.9, 1 - 1 / recipe.horizon)
        self.adam = torch.optim.Adam(self.values, lr=recipe.rate, betas=betas, fused=True)
        self._count_survivors()

    def _count_survivors(self) -> None:
        self.survivors = {name: int(self.units[i].count_nonzero()) for name, i in self.layers.items()}

    @torch.no_grad()
    def step(self, done: float) -> None:
        """Update the network along its gradients, and the average; ``done`` is the share of all steps that is made."""
        self.count += 1
        share = min(1.0, self.count / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        self.adam.param_groups[0]["lr"] = self.recipe.rate * share
        for value, gradient in zip(self.values, self.scaled_gradients(), strict=True):
            value.grad = gradient
        self.adam.step()
        self.write(self.values)
        # The first steps count alike: a fixed decay would hold on to where the path began.
        torch._foreach_lerp_(self.mean, self.values, max(1 - self.recipe.average, 1 / self.count))

    def scaled_gradients(self) -> list[Tensor]:
        """The derivatives by the values, taken from the network's parameters, whose gradients are cleared."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        for parameter in self.trained:
            parameter.grad = None
        torch._foreach_mul_(gradients, self.units)
        return gradients

    def write(self, values: Sequence[Tensor]) -> None:
        """Give the network's parameters these values, in their units."""
        for parameter, unit, value in zip(self.parameters, self.units, values, strict=True):
            torch.mul(unit, value, out=parameter)

    def write_mean(self) -> None:
        """Give the network's parameters the average. The dead are 0.0, never -0.0, as they are after a checkpoint."""
        self.write(self.mean)
        for parameter, unit in zip(self.parameters, self.units, strict=True):
            parameter.masked_fill_(unit == 0, 0.0)

    def saliency_inputs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By layer the survivors' values and mean squared gradients, both [survivors], in their units."""
        alive = {name: self.units[i] != 0 for name, i in self.layers.items()}
        slopes = {name: self.adam.state[self.values[i]]["exp_avg_sq"] for name, i in self.layers.items()}
        return {name: (self.values[i][alive[name]], slopes[name][alive[name]]) for name, i in self.layers.items()}

    def prune(self, keep: Mapping[str, Tensor], tentatively: bool = False) -> None:
        """Zero all but the survivors in ``keep`` (by layer, bool [survivors]); ``tentatively``: until ``write``."""
        for name, kept in keep.items():
            i = self.layers[name]
            alive = self.units[i] != 0
            mask = torch.zeros_like(alive).masked_scatter_(alive, kept)
            self.parameters[i].mul_(mask)
            if not tentatively:
                self.units[i].mul_(mask)
        self._count_survivors()

    def state(self) -> dict[str, Any]:
        """What ``resume`` needs, without what belongs to dead weights."""
        moments = [self.adam.state[value] for value in self.values]
        dense = {"units": self.units, "values": self.values, "mean": self.mean}
        dense |= {name: [each[name] for each in moments] for name in ("exp_avg", "exp_avg_sq")}
        alive = [unit != 0 for unit in self.units]
        packed = {name: [t[a] for t, a in zip(tensors, alive, strict=True)] for name, tensors in dense.items()}
        return {"alive": alive, "count": self.count, **packed}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state``, to the same bits."""
        for i, (value, alive) in enumerate(zip(self.values, state["alive"], strict=True)):
            names = ("units", "values", "mean", "exp_avg", "exp_avg_sq")
            dense = {name: torch.zeros_like(value).masked_scatter_(alive, state[name][i]) for name in names}
            for own in ("units", "values", "mean"):
                getattr(self, own)[i].copy_(dense.pop(own))
            self.adam.state[value] = {"step": torch.tensor(float(state["count"]), device=value.device), **dense}
        self.count = state["count"]
        self.write(self.values)
        self._count_survivors()


def _units(parameter: Tensor) -> Tensor:
    """For each value of a parameter the root mean square of its output's non-zero values; of all values for a bias.

    What is all zero gets a small unit.
    """
    rows = parameter.flatten(1) if parameter.dim() > 1 else parameter.reshape(1, -1)
    squares, counts = rows.square().sum(1), (rows != 0).sum(1)
    whole = (squares.sum() / counts.sum().clamp_min(1)).sqrt()
    sizes = (squares / counts.clamp_min(1)).sqrt().clamp_min(SMALLEST * whole if whole > 0 else SMALLEST)
    shape = (-1, *[1] * (parameter.dim() - 1)) if parameter.dim() > 1 else parameter.dim() * (1,)
    return torch.empty_like(parameter).copy_(sizes.view(shape))
