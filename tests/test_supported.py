"""Which modules are taken: the table of docs/your-network.md, made by trying each: `python tests/test_supported.py`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from delib.evolution import checked_goals
from delib.nn import fitting

PAGE = Path(__file__).parent.parent / "docs" / "your-network.md"
BEGIN, END = "<!-- supported -->\n\n", "\n<!-- /supported -->"
SEQUENCE, IMAGE = torch.linspace(-1, 1, 4 * 6 * 8).view(4, 6, 8), torch.linspace(-1, 1, 4 * 8 * 36).view(4, 8, 6, 6)
VOLUME, TOKENS = torch.linspace(-1, 1, 4 * 8 * 27).view(4, 8, 3, 3, 3), torch.arange(24).view(4, 6)


class First(nn.Module):
    """A module of which the first output is used; ``again`` gives it its input several times."""

    def __init__(self, module: nn.Module, again: int = 1) -> None:
        super().__init__()
        self.module, self.again = module, again

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(*[x] * self.again)[0]
        return output


def pruned() -> nn.Module:
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "Linear": (lambda: nn.Linear(8, 8), SEQUENCE),
    "Conv1d": (lambda: nn.Conv1d(6, 8, 3), SEQUENCE),
    "Conv2d": (lambda: nn.Conv2d(8, 8, 3), IMAGE),
    "Conv2d, grouped or depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(8, 8, 2), VOLUME),
    "Conv2d and BatchNorm2d": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), IMAGE),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), SEQUENCE),
    "MultiheadAttention": (lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), 3), SEQUENCE),
    "Embedding": (lambda: nn.Embedding(24, 8), TOKENS),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 8, 2), IMAGE),
    "LSTM, GRU, RNN": (lambda: First(nn.LSTM(8, 8, batch_first=True)), SEQUENCE),
    "Linear under weight norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), SEQUENCE),
    "Linear under spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 8)), SEQUENCE),
    "Linear under torch's prune": (pruned, SEQUENCE),
    "LazyLinear before its first call": (lambda: nn.LazyLinear(8), SEQUENCE),
    "Linear of complex weights": (lambda: nn.Linear(8, 8, dtype=torch.complex64), SEQUENCE),
}


class Followed(nn.Module):
    """A module and a linear layer after it, so that there is always one that can become sparse."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = module, nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.layer(x).flatten(1).mean(1, keepdim=True))
        return answer


def outcome(make: Callable[[], nn.Module], inputs: Tensor) -> str:
    """What becomes of a module's matrices of weights, in words."""
    torch.manual_seed(0)
    network = Followed(make()).eval()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            goals = checked_goals(network, inputs, 0.5, fitting)
    except ValueError as error:
        return f"refused: {error}"
    names = [name for name, tensor in network.layer.named_parameters() if tensor.dim() > 1]
    sparse = [name for name in names if f"layer.{name}".removesuffix(".weight") in goals]
    dense = [name for name in names if name not in sparse]
    assert all(any(name in str(warning.message) for warning in said) for name in dense)
    return ", ".join(["sparsified"] * bool(sparse) + [f"left dense: {', '.join(dense)}"] * bool(dense))


def table() -> str:
    rows = [f"| {name} | {outcome(make, inputs)} |" for name, (make, inputs) in KINDS.items()]
    return "\n".join(["| module | what `compress` and `evolve` do |", "|---|---|", *rows]) + "\n"


def test_the_page_says_what_happens() -> None:
    found = re.search(f"{BEGIN}(.*?){END}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found and found[1] == table(), f"write it anew by `python {Path(__file__).name}`"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}{table()}{END}", text, flags=re.DOTALL), encoding="utf-8"
    )
