"""Checkpoints: a long step saves itself as it goes, and after an interruption goes on from there to the same bits.

A step is saved to the file that its caller names, or, in a run of notebooks, to the folder that the runner names by
``DELIB_CHECKPOINTS``: there its file is found by the order in which steps begin, and steps inside another step have
folders of their own. A file holds the fingerprint of what the step works on; that of other work is never taken up.
"""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delib.files import advance_clock, atomic_path, clock
from delib.nn.fingerprint import fingerprint

SAVE = 15.0  # seconds between two checkpoints at least
SHARE = 0.05  # of the time, at most, is spent on saving
SHORT = 1.0  # seconds of work below which a finished step of a run is not kept


@dataclass
class _Place:
    """A folder for the checkpoints of steps, and how many have begun there."""

    folder: Path
    begun: int = 0

    def next(self, step: str) -> Path:
        self.begun += 1
        return self.folder / f"{self.begun:02}-{step}.ckpt"


_inside: ContextVar[_Place | None] = ContextVar("inside", default=None)
_run: list[_Place] = []  # of this process, once it asked
_named: ContextVar[Path | None] = ContextVar("named", default=None)


@contextmanager
def saved_to(file: Path) -> Iterator[None]:
    """The first long step inside the block, such as ``evolve``, is saved to ``file`` and goes on from it if it exists.

    It is saved every 15 seconds at most, and at the end. A checkpoint of other work is overwritten.
    """
    token = _named.set(file)
    try:
        yield
    finally:
        _named.reset(token)


def _place() -> _Place | None:
    """Where the step that begins now belongs: inside another step, in the run's folder, or nowhere."""
    folder = os.environ.get("DELIB_CHECKPOINTS")
    if folder and (not _run or _run[0].folder != Path(folder)):
        _run[:] = [_Place(Path(folder))]
    return _inside.get() or (_run[0] if folder else None)


class Checkpoint:
    """Where one step saves itself. Without a file, and outside a run of notebooks, nothing is ever saved.

    Parameters
    ----------
    step : str
        Its name, such as ``"evolve"``.
    *facts
        All that its result depends on, as it is before the step begins (see ``fingerprint``).
    file : Path, optional
        Where it is saved and where ``read`` finds it; by default a file of the run's own.
    """

    def __init__(self, step: str, *facts: Any, file: Path | None = None) -> None:
        place, file = _place(), file or _named.get()
        _named.set(None)
        self.own = file is None  # to this run: what is in the way there may be replaced
        self.file = file if file or not place else place.next(step)
        self.begin = self.saved = clock()
        self.pause = SAVE
        if self.file:
            self.fingerprint = fingerprint(step, *facts)

    def read(self, device: torch.device | str = "cpu") -> Any:
        """The state that an interruption left of this very work, its tensors on ``device``; None if there is none.

        The random streams of Python, NumPy and PyTorch stand again where they stood. Raises ValueError if the file
        that the caller named is no checkpoint, so that it is not overwritten.
        """
        if not self.file or not self.file.is_file():
            return None
        try:
            held = torch.load(self.file, weights_only=True, map_location=device)
            foreign = held["fingerprint"] != self.fingerprint
            state, streams, seconds = held["state"], held["streams"], float(held["seconds"])
        except Exception as error:  # damaged bytes make torch raise whatever comes first
            if self.own:
                return None
            reason = f"no checkpoint ({type(error).__name__})"
            raise ValueError(f"{self.file} is {reason}; delete it, or name another file") from None
        if foreign:
            return None
        _restore(streams)
        advance_clock(seconds)
        self.saved = clock()
        return state

    def offer(self, state: Callable[[], Any]) -> None:
        """Save ``state()``, if the last time is long enough ago."""
        if self.file and clock() - self.saved >= self.pause:
            self._save(state())

    def finish(self, state: Callable[[], Any]) -> None:
        """Save the ``state()`` of a finished step, from which it need not be done again."""
        if self.file and (not self.own or clock() - self.begin >= SHORT):
            self._save(state())

    @contextmanager
    def within(self, part: object) -> Iterator[None]:
        """Steps inside the block belong to this one's ``part``; their checkpoints go with the next one of this step."""
        token = _inside.set(_Place(self._inner() / str(part)) if self.file else None)
        try:
            yield
        finally:
            _inside.reset(token)

    def _inner(self) -> Path:
        assert self.file
        return self.file.with_name(f"{self.file.name}.inner")

    def _save(self, state: Any) -> None:
        """A full disk stops no work: it is said, and the last checkpoint stays."""
        assert self.file
        start = clock()
        held = {"fingerprint": self.fingerprint, "state": state, "streams": _streams(), "seconds": start - self.begin}
        try:
            with atomic_path(self.file) as temporary:
                torch.save(held, temporary)
        except (OSError, RuntimeError) as error:  # torch's own of a full disk
            reason = " ".join(str(error).split())[:100]
            warnings.warn(f"{self.file}: no checkpoint was written ({reason}); the work goes on", stacklevel=4)
        else:
            shutil.rmtree(self._inner(), ignore_errors=True)
        self.saved = clock()
        self.pause = max(SAVE, (self.saved - start) / SHARE)


def from_arrays(arrays: Iterable[NDArray[Any] | None]) -> list[Tensor | None]:
    """Arrays, or None, as a checkpoint holds them."""
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def to_arrays(tensors: Iterable[Tensor | None]) -> list[Any]:
    """The arrays of ``from_arrays`` again."""
    return [None if tensor is None else tensor.cpu().numpy() for tensor in tensors]


def _streams() -> dict[str, Any]:
    """Where the global random streams stand."""
    kind, keys, *rest = np.random.get_state()
    streams = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    return streams


def _restore(streams: dict[str, Any]) -> None:
    kind, keys, *rest = streams["numpy"]
    random.setstate(streams["python"])
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(streams["torch"].cpu())
    if len(streams["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all([state.cpu() for state in streams["cuda"]])
