"""What the README shows works as it stands there."""

from __future__ import annotations

import re

import torch
from house import ROOT


def test_the_ten_lines_for_one_s_own_network_run() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 10
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    student, network = names["student"], names["network"]
    assert isinstance(student, torch.nn.Module) and isinstance(network, torch.nn.Module)
    for layer in (network[0], network[2]):
        assert float((layer.weight == 0).float().mean()) >= 0.79
        assert len(layer.weight[layer.weight != 0].unique()) <= 16
