"""Networks for other runtimes: ONNX."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from delib.files import atomic_path
from delib.nn.layers import original
from delib.nn.trace import tensors_in

TOLERANCE = 1e-3  # of the largest value of an output: float32 sums in another order, through many layers


@torch.no_grad()
def export_onnx(network: nn.Module, inputs: Tensor, path: str | Path) -> None:
    """Write a network as one ONNX file, of inputs like ``inputs`` [n, ...] of any number n where it allows that.

    The file is written only if ONNX Runtime, asked once, answers as torch does. Zeros are stored and multiplied like
    any other value: it is as large and as fast as that of any dense network. Raises ValueError where the packages of
    the extra ``onnx`` are missing, where the network cannot be exported, and where the two answers differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what the exporter of torch needs)
    except ImportError as error:
        raise ValueError(f"ONNX needs further packages: pip install 'delib[onnx]' ({error})") from None
    network = original(network).eval()
    example = inputs[torch.arange(2) % len(inputs)]
    with atomic_path(Path(path)) as temporary:
        _export(network, example, temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        answers = map(torch.from_numpy, session.run(None, {"input": example.numpy()}))
        for theirs, ours in zip(answers, tensors_in(network(example)), strict=True):
            if not torch.allclose(theirs, ours, rtol=0, atol=TOLERANCE * float(ours.abs().max())):
                raise ValueError(f"{path}: ONNX Runtime answers otherwise than torch; this network cannot be exported")


def _export(network: nn.Module, example: Tensor, path: Path) -> None:
    """The exporter of torch, whose warnings are of its own versions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=["input"],
            dynamic_shapes=({0: torch.export.Dim.AUTO},),
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # of whatever kind its many stages raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"torch cannot export a {type(network).__name__} to ONNX ({reason})") from error
    finally:
        logger.setLevel(level)
