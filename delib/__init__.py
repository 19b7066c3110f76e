"""Directed Evolution: networks sparsified by assessing tentatively what can be spared, and compressed to few bits.

The doors below are imported when they are first used, so that ``import delib`` itself is quick; everything else is
found in the wings, see the README.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delib.coding import Quantized as Quantized
    from delib.coding import decode as decode
    from delib.coding import encode as encode
    from delib.coding import load as load
    from delib.coding import save as save
    from delib.distillation import compress as compress
    from delib.distillation import distill as distill
    from delib.evolution import evolve as evolve
    from delib.layerwise import quantize as quantize

__version__ = "0.1.0"

_DOORS = {
    "evolve": "evolution",
    "compress": "distillation",
    "distill": "distillation",
    "quantize": "layerwise",
    "Quantized": "coding",
    "encode": "coding",
    "decode": "coding",
    "save": "coding",
    "load": "coding",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'delib' has no attribute {name!r}")
    return getattr(import_module(f"delib.{_DOORS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOORS})
