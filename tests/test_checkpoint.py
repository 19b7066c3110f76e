"""Checkpoints: after any number of kills the same bytes, never another work's, and nothing overwritten by mistake."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from delib.evolution import Cycle, SparsityDatabase, evolve
from delib.evolution.criteria import magnitude
from delib.files import clock
from delib.nn import checkpoint, mse
from delib.nn.checkpoint import Checkpoint, saved_to
from delib.nn.fingerprint import fingerprint

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved whenever there is something to save."""
    for name, value in (("SAVE", 0.0), ("SHARE", 1e9), ("SHORT", 0.0)):
        monkeypatch.setattr(checkpoint, name, value)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch is forked safely there")
def test_killed_steps_end_in_the_bytes_of_uninterrupted_ones() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "3", "--at-once", "3"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {name: result["same"] for name, result in told.items()} == dict.fromkeys(told, True)
    assert max(sum(result["restored"]) for result in told.values()) > 0, "none went on from a checkpoint"


OTHERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another teacher": lambda work: work.update(teacher=tiny(1)),
    "one weight of it": lambda work: work["teacher"][2].bias.data.view(-1)[0].add_(1e-6),
    "one input": lambda work: work.update(inputs=torch.cat([INPUTS[:-1], INPUTS[-1:] + 1e-6])),
    "an input changed in place": lambda work: work["inputs"][0, 0].add_(1e-6),
    "another goal": lambda work: work.update(targets=0.8),
    "a goal for one layer": lambda work: work.update(targets={"0": 0.7}),
    "another cycle": lambda work: work.update(cycle=replace(work["cycle"], temperature=0.4)),
    "another divergence": lambda work: work.update(divergence=lambda a, b: mse(a, b) * 2),
    "another seed": lambda work: work.update(seed=1),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_the_checkpoint_of_other_work_is_never_taken(
    change: Callable[[dict[str, Any]], Any], eager: None, tmp_path: Path
) -> None:
    work: dict[str, Any] = {"teacher": tiny(), "inputs": INPUTS.clone(), "targets": 0.7, "cycle": Cycle(4, 0.3)}
    work |= {"divergence": mse, "seed": 0}
    file = tmp_path / "evolve.ckpt"
    with saved_to(file):
        first = evolve(**work)
    begin = clock()
    with saved_to(file):
        again = evolve(**copy.deepcopy(work))
    assert again.rows == first.rows
    assert clock() - begin >= 0
    with torch.no_grad():
        change(work)
    wanted = evolve(**work)
    with saved_to(file):
        got = evolve(**work)
    assert got.rows == wanted.rows
    for name, tensor in wanted.student.state_dict().items():
        assert torch.equal(tensor, got.student.state_dict()[name])


def test_a_file_that_is_no_checkpoint_is_refused_and_left(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    for content in (b"not mine", b""):
        file.write_bytes(content)
        refused = pytest.raises(ValueError, match=r"weights\.pt is no checkpoint .*; delete it, or name another file$")
        with refused, saved_to(file):
            evolve(tiny(), INPUTS, 0.5)
        assert file.read_bytes() == content
    torch.save(tiny().state_dict(), file)
    with pytest.raises(ValueError, match="no checkpoint"), saved_to(file):
        evolve(tiny(), INPUTS, 0.5)


def test_a_run_s_finished_steps_are_not_done_again(
    eager: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELIB_CHECKPOINTS", str(tmp_path / "run"))
    made: list[int] = []

    def work() -> list[Any]:
        monkeypatch.setattr(checkpoint, "_run", [])  # as in a new process
        begin, ends = clock(), []
        for step in range(3):  # alike, but for what happens inside
            saved = Checkpoint("count", "alike")
            state = saved.read()
            if state is None:
                made.append(step)
                state = {"step": step, "drawn": torch.rand(1)}
            saved.finish(lambda state=state: state)
            ends.append((state["step"], float(state["drawn"])))
        return [ends, float(torch.rand(1)), clock() - begin]

    torch.manual_seed(3)
    whole = work()
    torch.manual_seed(4)
    again = work()
    assert made == [0, 1, 2]
    assert again[:2] == whole[:2], "the random stream stands where it stood"
    assert again[2] >= whole[2] * 0.5, "seconds count as they did"
    (tmp_path / "run" / "02-count.ckpt").write_bytes(b"damaged")
    assert work()[0][0::2] == whole[0][0::2]
    assert made == [0, 1, 2, 1]


def test_steps_inside_a_step_go_with_it(eager: None, tmp_path: Path) -> None:
    outer = Checkpoint("outer", 1, file=tmp_path / "outer.ckpt")
    for part in (1, 2):
        with outer.within(part):
            inner = Checkpoint("inner", 1)
            assert inner.read() is None, "each part has its own"
            inner.finish(lambda: 1)
            assert inner.file is not None
            assert inner.file.is_file()
    outer.finish(lambda: 1)
    assert [path.name for path in tmp_path.iterdir()] == ["outer.ckpt"]


def test_nothing_is_saved_where_nobody_asked(eager: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DELIB_CHECKPOINTS", raising=False)
    evolve(tiny(), INPUTS, 0.5)
    SparsityDatabase.build(tiny(), ["0"], INPUTS, magnitude, mse)
    assert not list(tmp_path.rglob("*"))


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def test_fingerprints_tell_apart_what_differs_and_nothing_else() -> None:
    alike: list[Callable[[], Any]] = [
        lambda: [1, 2.0, "x", None, {"a": (1, 2)}],
        lambda: scaled(2.0),
        lambda: partial(pow, 2, mod=5),
        lambda: tiny(),
        lambda: torch.Generator().manual_seed(5),
        lambda: Cycle(3),
    ]
    apart: list[Any] = [*(make() for make in alike), scaled(3.0), partial(pow, 3, mod=5), Cycle(4), [1, 2.0, "x"]]
    apart += [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int32), tiny().double(), [[1], 2], [1, [2]]]
    assert len({fingerprint(fact) for fact in apart}) == len(apart)
    assert all(fingerprint(make()) == fingerprint(make()) for make in alike)
    loop: list[Any] = []
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)


FACTS = """
import torch
from torch import nn
from delib.nn.fingerprint import fingerprint
factor = 2
torch.manual_seed(0)
layer, named, function = nn.Linear(2, 2), {"b", "a", "c"}, lambda x: x * factor in {"p", "q"}
found = fingerprint(layer, named, function)
"""


def test_fingerprints_are_the_same_in_every_process_and_see_what_a_notebook_s_functions_name() -> None:
    command = [sys.executable, "-c", f"{FACTS}\nprint(found)"]
    other = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    ends = []
    for text in (FACTS, FACTS.replace("factor = 2", "factor = 3")):
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(text, space)
        ends.append(space["found"])
    assert ends[0] == other.stdout.strip()
    assert ends[1] != ends[0]
