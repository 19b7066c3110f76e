"""Deep networks are entered in their middle, and evolve as they would from their inputs on."""

import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.evolution import entry
from delib.evolution.entry import STRETCH, entry_chains
from delib.evolution.evolve import Cycle, evolve
from delib.nn import checkpoint, saved_to
from delib.nn.divergence import mse
from delib.nn.hooks import Entered, first_chain, up_to
from delib.nn.layers import weight_layers

INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
CYCLE = Cycle(population=5, share=0.2, horizon=0, batch=len(INPUTS))


class Block(nn.Module):
    """Two layers, a skip that is added in place, and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x += self.two(F.elu(self.one(x)))
        return x


def deep(blocks: int = 20, last: type[nn.Module] = nn.Identity) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *(Block() for _ in range(blocks)), last(), nn.Linear(6, 3)).eval()


def test_a_stretch_is_entered_behind_all_that_comes_before_it() -> None:
    network = deep()
    names = list(weight_layers(network))
    chains = entry_chains(network, names, INPUTS[:2])
    assert chains["0"] == chains["8.one"] == ("0", [])  # the first sixteen: 0, 1.one, 1.two, ..., 8.one
    assert chains["8.two"] == ("8.two", [str(i) for i in range(8)])  # block 8 holds layers of both stretches
    assert chains["16.two"] == chains["22"] == ("16.two", [str(i) for i in range(16)])
    assert [first for first, _ in chains.values()].count("8.two") == STRETCH


def test_chains_leave_out_what_shares_a_tensor_with_a_later_layer() -> None:
    network = deep()
    names = [name for name in weight_layers(network) if name != "3.one"]
    network[3].one.weight = network[20].two.weight
    assert entry_chains(network, names, INPUTS[:2])["9.one"][1] == ["0", "1", "2"]


@pytest.mark.parametrize("compensate", [False, True])
def test_the_same_weights_die_as_from_the_inputs_on(compensate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = replace(CYCLE, compensate=compensate)
    entered = evolve(deep(), INPUTS, 0.5, cycle, divergence=mse)
    monkeypatch.setattr(entry, "STRETCH", 1000)
    whole = evolve(deep(), INPUTS, 0.5, cycle, divergence=mse)
    for name, generations in whole.generations.items():
        assert torch.equal(entered.generations[name], generations)
    assert [row["layer"] for row in entered.rows] == [row["layer"] for row in whole.rows]


def test_an_evolution_interrupted_within_a_stretch_goes_on_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("SAVE", 0.0), ("SHARE", 1e9), ("SHORT", 0.0)):
        monkeypatch.setattr(checkpoint, name, value)
    cycle = replace(CYCLE, batch=30)  # so that it matters which inputs are drawn
    wanted = evolve(deep(), INPUTS, 0.5, cycle, divergence=mse)
    module, left = import_module("delib.evolution.evolve"), 70
    proposed = module.propose

    def interrupted(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return proposed(*args)

    monkeypatch.setattr(module, "propose", interrupted)
    with pytest.raises(KeyboardInterrupt), saved_to(tmp_path / "evolve.ckpt"):
        evolve(deep(), INPUTS, 0.5, cycle, divergence=mse)
    with saved_to(tmp_path / "evolve.ckpt"):
        again = evolve(deep(), INPUTS, 0.5, cycle, divergence=mse)
    assert again.rows == wanted.rows
    assert all(torch.equal(a, b) for a, b in zip(again.student.parameters(), wanted.student.parameters(), strict=True))


@torch.no_grad()
def test_an_entered_network_answers_as_the_whole_one() -> None:
    network, other = deep(), torch.randn(5, 6)
    wanted = copy.deepcopy(network)
    entered = Entered(network, ["0", "1", "2", "3"], INPUTS)
    for _ in range(2):  # the block behind works in place on what it is given
        assert torch.equal(entered(INPUTS), wanted(INPUTS.clone()))
    assert torch.equal(entered(other), wanted(other.clone()))
    assert torch.equal(up_to(entered, "7")(INPUTS), wanted[:8](INPUTS.clone()))
    network[2].one.weight.zero_()
    assert torch.equal(entered(INPUTS), wanted(INPUTS.clone()))  # what the chain gave when it was entered
    network[5].one.weight.zero_()
    wanted[5].one.weight.zero_()
    assert torch.equal(entered(INPUTS), wanted(INPUTS.clone()))


class Keeping(nn.Module):
    """Keeps what it was given for a later module to read, past all that modules return."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x * 2
        return self.layer(x)


class Reading(nn.Module):
    def __init__(self, kept: Keeping) -> None:
        super().__init__()
        self.elsewhere = [kept]
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.elsewhere[0].kept


def test_no_chain_holds_a_module_whose_memory_is_read_later() -> None:
    torch.manual_seed(0)
    keeping = Keeping()
    network = nn.Sequential(nn.Linear(6, 6), keeping, nn.ReLU(), Reading(keeping), nn.Linear(6, 2)).eval()
    assert first_chain(network, ["0", "1.layer"], INPUTS[:2]) == (["0"], ["0"])


class Scaled(nn.Module):
    """Takes more than one argument, some by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor, factor: float, *, shift: float) -> Tensor:
        return self.layer(x) * factor + shift


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 6), Scaled(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x), 2.0, shift=0.5))


@torch.no_grad()
def test_modules_of_several_arguments_can_be_in_a_chain() -> None:
    torch.manual_seed(0)
    network = Calling().eval()
    chain, _ = first_chain(network, ["one", "two.layer"], INPUTS[:2])
    assert chain == ["one", "two"]
    assert torch.equal(Entered(network, chain, INPUTS)(INPUTS), network(INPUTS))
