"""Divergences of a student's outputs from its teacher's: Kullback-Leibler of class probabilities, squared errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

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
