"""The direct assessment: zero a candidate set tentatively, run the network, measure its divergence from the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.networks import WEIGHT_LAYERS, weight_of
from delib.trace import Call, Trace, forwards_replaced

# Student's outputs, teacher's outputs on the same inputs -> one number, 0 where they agree.
Divergence = Callable[[Any, Any], Tensor]


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's, in nats an image.

    Both are logits [n, classes], softened by ``temperature``. The factor temperature² keeps the gradient's
    size independent of it (Hinton, Vinyals and Dean 2015, section 2.1); 1 compares the networks as they are used.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def soft_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """``kl`` softened by 10, close to the squared difference of centred logits.

    On images that the teacher was trained on it is sure of its answers; plain ``kl`` is flat there and says nothing
    about the rest, so that what is chosen or fitted by it does not carry over to new images.
    """
    return kl(student, teacher, 10.0)


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the outputs, whatever they mean."""
    return F.mse_loss(student, teacher)


DIVERGENCES: dict[str, Divergence] = {"kl": kl, "soft_kl": soft_kl, "mse": mse}


class Suffix:
    """A network as far as it depends on one layer, for inputs that stay the same: the rest is computed once.

    Works for any module graph (branches, skips, shared modules), see ``Trace``: every call of a leaf module that does
    not depend on the layer gives again what it gave, also where it comes after the layer; all others are computed.
    Calling the suffix gives exactly what ``network(inputs)`` would. Held in memory are the layer's own inputs,
    ``site_inputs``, and those outputs alone that something computed is made of.

    Use as a context manager: the network is patched meanwhile.
    """

    def __init__(self, network: nn.Module, layer: nn.Module, inputs: Tensor) -> None:
        self.network, self.layer, self.inputs = network, layer, inputs

    def __enter__(self) -> Self:
        trace = Trace(self.network, self.layer, self.inputs)
        if not trace.reached:
            raise ValueError("the layer to assess is never called by the network's forward pass")
        self.site_inputs, self._calls = trace.site_inputs, trace.calls
        return self

    @torch.no_grad()
    def __call__(self) -> Any:
        again = {module: _replay(module.forward, iter(calls)) for module, calls in self._calls.items()}
        with forwards_replaced(again):
            return self.network(self.inputs)

    def __exit__(self, *_: object) -> None:
        self._calls.clear()


class Cut(nn.Module):
    """A network up to the first call of one of its modules: its output is the answer, and nothing runs after it.

    Raises ValueError if the module is not called.
    """

    def __init__(self, network: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.network, self.end = network, end

    def forward(self, inputs: Tensor) -> Any:
        def stop(_: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        hook = self.end.register_forward_hook(stop)
        try:
            self.network(inputs)
        except _Reached as reached:
            return reached.output
        finally:
            hook.remove()
        raise ValueError("the module to stop at is never called by the network's forward pass")


class _Reached(BaseException):
    """Not an error, so that no network takes it for one."""

    def __init__(self, output: Any) -> None:
        self.output = output


def end(network: nn.Module, layer: nn.Module, inputs: Tensor, layers: int | None) -> str:
    """The name of the weight layer at whose outputs a divergence ``layers`` further on than ``layer`` is measured.

    Only weight layers that depend on ``layer`` count, in the order in which the network calls them; 0 is the layer
    itself. '' stands for the whole network: where there are not as many, or ``layers`` is None.
    """
    if layers is None:
        return ""
    behind = [m for m in dict.fromkeys(Trace(network, layer, inputs).behind) if isinstance(m, WEIGHT_LAYERS)]
    names = {module: name for name, module in network.named_modules()}
    return names[behind[layers]] if layers < len(behind) else ""


def up_to(network: nn.Module, name: str) -> nn.Module:
    """The network up to the module of that name; for '' the network itself."""
    return Cut(network, network.get_submodule(name)) if name else network


def _replay(forward: Callable[..., Any], calls: Iterator[Call]) -> Callable[..., Any]:
    def replayed(*args: Any, **kwargs: Any) -> Any:
        call = next(calls, None)
        return forward(*args, **kwargs) if call is None or call.runs else call.again()

    return replayed


@contextmanager
def tentatively_zeroed(layer: nn.Module, candidate: Tensor) -> Iterator[None]:
    """The weights at flat indices ``candidate`` are zero inside the block and have their values back after it."""
    weight = weight_of(layer).view(-1)
    values = weight[candidate]
    weight[candidate] = 0
    try:
        yield
    finally:
        weight[candidate] = values


def assess(suffix: Suffix, candidates: Iterable[Tensor], teacher_outputs: Any, divergence: Divergence) -> Tensor:
    """The divergence from the teacher that each candidate set would cause, [population].

    A candidate [size] holds flat indices into the weight of ``suffix.layer``.
    """
    divergences = []
    for candidate in candidates:
        with tentatively_zeroed(suffix.layer, candidate):
            divergences.append(divergence(suffix(), teacher_outputs).reshape(()))
    return torch.stack(divergences)


def importance(network: nn.Module, layer: nn.Module, inputs: Tensor, divergence: Divergence, seed: int = 0) -> Tensor:
    """How strongly the divergence from the network itself reacts to a small error of each output of a layer: [rows].

    That is the mean, over inputs and positions, of ∂²divergence/∂z² for the layer's outputs z, estimated by
    Hutchinson's v·(H v) with random signs v (Bekas, Kokiopoulou and Saad 2007). Rows are kept within a thousandth of
    the most important one: what seems not to matter on the calibration inputs may matter on others. A
    divergence without curvature at zero makes all rows alike.
    """
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        with torch.enable_grad():
            answer = network(inputs.clone().requires_grad_())
    finally:
        hook.remove()
    if not outputs:
        raise ValueError("the layer is never called by the network's forward pass")
    with torch.no_grad():
        goal = network(inputs)
    with torch.enable_grad():
        slopes = torch.autograd.grad(divergence(answer, goal), outputs, create_graph=True)
        chance = torch.Generator().manual_seed(seed)
        signs = [_signs(z, chance) for z in outputs]
        bends = torch.autograd.grad(slopes, outputs, signs)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    rows = torch.stack([(v * b).movedim(axis, 0).flatten(1).mean(1) for v, b in zip(signs, bends, strict=True)]).sum(0)
    return _bounded(rows)


def sensitivities(
    network: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, divergence: Divergence, seed: int = 0
) -> dict[str, Tensor]:
    """``importance`` of many layers at a fraction of its cost and of its noise, up to a factor of each layer: [rows].

    The curvature H of the divergence is taken at the network's outputs alone, as if it were diagonal there, and sent
    back: the mean of (Jᵀ √H u)² over inputs and positions, u random signs and J the outputs' derivatives by a layer's
    outputs. That is the Gauss-Newton matrix's diagonal (Martens and Grosse 2015, section 2), as a sum of squares.
    ``network`` answers with a tensor or a sequence of tensors. Raises ValueError if a layer is never called.
    """
    calls: list[tuple[str, Tensor]] = []
    hooks = [m.register_forward_hook(lambda *call, name=n: calls.append((name, call[2]))) for n, m in layers.items()]
    try:
        with torch.enable_grad():
            answer = network(inputs.clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    if lacking := set(layers) - {name for name, _ in calls}:
        raise ValueError(f"the network's forward pass never calls layer {min(lacking)!r}")
    chance = torch.Generator().manual_seed(seed)
    answers = [answer] if isinstance(answer, Tensor) else list(answer)
    roots = [h.sqrt() * _signs(h, chance) for h in _output_curvature(answer, divergence, chance)]
    sums = {name: torch.zeros(weight_of(layer).shape[0]).to(weight_of(layer)) for name, layer in layers.items()}
    behind = torch.autograd.grad(answers, [output for _, output in calls], roots)
    for (name, _), slopes in zip(calls, behind, strict=True):
        axis = -1 if isinstance(layers[name], nn.Linear) else 1
        sums[name] += slopes.square().movedim(axis, 0).flatten(1).mean(1)
    return {name: _bounded(rows) for name, rows in sums.items()}


def _output_curvature(answer: Any, divergence: Divergence, chance: torch.Generator) -> list[Tensor]:
    """The diagonal of the divergence's second derivatives by a network's outputs, where student and teacher agree."""
    single = isinstance(answer, Tensor)
    goal = [tensor.detach() for tensor in ([answer] if single else answer)]
    with torch.enable_grad():
        ours = [tensor.clone().requires_grad_() for tensor in goal]
        diverged = divergence(ours[0], goal[0]) if single else divergence(ours, goal)
        slopes = torch.autograd.grad(diverged, ours, create_graph=True)
        signs = [_signs(tensor, chance) for tensor in ours]
        bends = torch.autograd.grad(slopes, ours, signs)
    return [(v * b).clamp_min(0) for v, b in zip(signs, bends, strict=True)]


def _signs(like: Tensor, chance: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=chance) * 2 - 1).to(like)


def _bounded(rows: Tensor) -> Tensor:
    """Within a thousandth of the most important one; all alike where none is."""
    most = rows.max()
    return rows.clamp_min(1e-3 * most) if most > 0 else torch.ones_like(rows)
