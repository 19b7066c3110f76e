"""Weights and layers of any network, hooks and traces, batch-norm folding, divergences, sensitivities, solvers."""

from delib.nn.batchnorm import folded, norm_pairs, unfolded
from delib.nn.device import fastest_device, fastest_precision, multiplying
from delib.nn.divergence import Divergence, kl, mse, soft_kl
from delib.nn.hooks import Cut, calls, end, modules_before, replayed, up_to, watched, watched_calls
from delib.nn.layers import (
    accuracy,
    bias_of,
    channels_last,
    float32_bytes,
    hold,
    matrix_of,
    matrix_to_weight,
    predict,
    put_matrix,
    sparsity,
    stored,
    weight_key,
    weight_layers,
    weight_of,
    weight_to_matrix,
    with_bias,
)
from delib.nn.sensitivity import sensitivities, sensitivity
from delib.nn.solvers import bisect, conjugate_gradients
from delib.nn.trace import Call, Trace, forwards_replaced, mapped

__all__ = [
    "Call",
    "Cut",
    "Divergence",
    "Trace",
    "accuracy",
    "bias_of",
    "bisect",
    "calls",
    "channels_last",
    "conjugate_gradients",
    "end",
    "fastest_device",
    "fastest_precision",
    "float32_bytes",
    "folded",
    "forwards_replaced",
    "hold",
    "kl",
    "mapped",
    "matrix_of",
    "matrix_to_weight",
    "modules_before",
    "mse",
    "multiplying",
    "norm_pairs",
    "predict",
    "put_matrix",
    "replayed",
    "sensitivities",
    "sensitivity",
    "soft_kl",
    "sparsity",
    "stored",
    "unfolded",
    "up_to",
    "watched",
    "watched_calls",
    "weight_key",
    "weight_layers",
    "weight_of",
    "weight_to_matrix",
    "with_bias",
]
