"""How far notebooks are: on a terminal a bar for each, else a line a minute."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

MINUTE = 60.0  # seconds between two lines where there is no terminal


@dataclass
class Work:
    """A notebook at work: in which of its cells, since when, and the ``seconds`` that each cell took the last time
    (None: not known)."""

    name: str
    cells: int
    seconds: list[float] | None = None
    cell: int = 0
    begun: float = field(default_factory=time.monotonic)
    cell_begun: float = field(default_factory=time.monotonic)

    def enter(self, cell: int) -> None:
        """A cell begins."""
        self.cell, self.cell_begun = cell, time.monotonic()

    @property
    def left(self) -> float | None:
        """Seconds that are left if cells take as long as the last time."""
        if self.seconds is None:
            return None
        here = self.seconds[self.cell] if self.cell < len(self.seconds) else 0.0
        return max(0.0, here - (time.monotonic() - self.cell_begun)) + sum(self.seconds[self.cell + 1 :])

    @property
    def share(self) -> float:
        """Share of the work that is done, by time or, where that is not known, by cells."""
        total = sum(self.seconds or ())
        if self.left is None or not total:
            return self.cell / max(self.cells, 1)
        return min(1.0, max(0.0, 1 - self.left / total))

    def __str__(self) -> str:
        spent = duration(time.monotonic() - self.begun)
        rest = f"about {duration(self.left)} left" if self.left is not None else f"at work for {spent}"
        return f"{self.name}: cell {self.cell + 1} of {self.cells}, {rest}"


class Progress:
    """Shows on ``stream``, by default standard error, how far each notebook is. A context manager; inside it ``say``
    writes a line. ``quiet`` shows nothing but these."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self._works: dict[str, Work] = {}
        self._ended = threading.Event()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        self._ended.clear()
        if not self.quiet:
            if self.stream.isatty():
                self._bars = _bars(self.stream)
                self._bars.start()
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, line: str) -> None:
        """One line, above the bars where there are any."""
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    @contextmanager
    def of(self, name: str, cells: int, before: Path) -> Iterator[Work]:
        """The notebook ``name`` runs in the block; ``before`` is what it left when it ran the last time."""
        work = self._works[name] = Work(name, cells, seconds_of_cells(before, cells))
        try:
            yield work
        finally:
            self._works.pop(name, None)

    def _tick(self) -> None:
        while not self._ended.wait(0.5 if self._bars is not None else MINUTE):
            works = list(self._works.values())
            if self._bars is not None:
                self._draw(works)
            else:
                for work in works:
                    print(work, file=self.stream, flush=True)

    def _draw(self, works: list[Work]) -> None:
        bars = self._bars
        if bars is None:
            return
        for name in set(self._tasks) - {work.name for work in works}:
            bars.remove_task(self._tasks.pop(name))
        for work in works:
            if work.name not in self._tasks:
                self._tasks[work.name] = bars.add_task("", total=1.0)
            bars.update(self._tasks[work.name], completed=work.share, description=str(work))


def _bars(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = BarColumn(20), TextColumn("{task.description}", markup=False)
    return Bars(*columns, console=Console(file=stream), transient=True, refresh_per_second=2)


def seconds_of_cells(executed: Path, cells: int) -> list[float] | None:
    """How long each cell of an executed notebook took; None if that is not known, or if it has other cells."""
    try:
        found = json.loads(executed.read_text(encoding="utf-8"))["cells"]
        seconds = [float(cell["metadata"]["papermill"]["duration"] or 0) for cell in found]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seconds if len(seconds) == cells else None


def duration(seconds: float) -> str:
    """Seconds as a reader would say them: ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
