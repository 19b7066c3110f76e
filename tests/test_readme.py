"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from house import ROOT


def test_the_lines_for_one_s_own_network_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps, at_once = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in steps.splitlines() if line.strip()]) <= 10
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(steps, names)
    student, decoded = names["student"], names["network"]
    assert isinstance(decoded, torch.nn.Module)
    for layer in (decoded[0], decoded[2]):  # type: ignore[index]
        assert len(layer.weight[layer.weight != 0].unique()) <= 16
    exec(at_once, names)
    assert isinstance(student, torch.nn.Module)
    for network, least in ((student, 0.79), (names["network"], 0.89)):
        assert isinstance(network, torch.nn.Module)
        weights = torch.cat([network[i].weight.detach().flatten() for i in (0, 2)])  # type: ignore[index]
        assert float((weights == 0).float().mean()) >= least
