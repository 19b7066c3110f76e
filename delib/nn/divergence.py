"""Divergences of a student's outputs from its teacher's: Kullback-Leibler of class probabilities, squared errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from delib.nn.trace import tensors_in

# Student's outputs, teacher's outputs on the same inputs -> one number, 0 where they agree.
Divergence = Callable[[Any, Any], Tensor]
TINY = torch.finfo(torch.float32).tiny


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


def mse(student: Any, teacher: Any) -> Tensor:
    """Mean squared difference of the outputs, whatever they mean; the sum over their tensors if there are several."""
    return _total([F.mse_loss(ours, theirs) for ours, theirs in _pairs(student, teacher)])


def fitting(student: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
    """The divergence that fits the outputs, by their form: the default where none is named.

    A matrix [n, classes] of two or more columns is taken as logits and compared by ``kl`` with ``temperature``, or, if
    the teacher's rows are probabilities, by the divergence of these. Everything else are values: their squared error as
    a share of the teacher's mean square. Several tensors, in tuples, dicts and other objects, are compared one by one
    and added up. Where columns are no classes, name ``mse``. Raises ValueError for outputs without floating-point
    tensors.
    """
    return _total([_fitting(ours, theirs, temperature) for ours, theirs in _pairs(student, teacher)])


def _fitting(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if teacher.dim() != 2 or teacher.shape[1] < 2:
        return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(TINY)
    if bool((teacher >= 0).all()) and bool(((teacher.sum(1) - 1).abs() < 1e-3).all()):
        return kl(student.clamp_min(TINY).log(), teacher.clamp_min(TINY).log(), temperature)
    return kl(student, teacher, temperature)


def _pairs(student: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
    both = zip(tensors_in(student), tensors_in(teacher), strict=True)
    pairs = [(ours, theirs) for ours, theirs in both if theirs.is_floating_point()]
    if not pairs:
        raise ValueError(f"outputs of type {type(teacher).__name__} hold no floating-point tensors; name a divergence")
    return pairs


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


DIVERGENCES: dict[str, Divergence] = {"fitting": fitting, "kl": kl, "soft_kl": soft_kl, "mse": mse}
