"""Executed notebooks made by hand, for the tests of pages and report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image

from delib.files import write_json
from delib.suite import runner
from delib.suite.parameters import profile_parameters


def png(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (40, 20), shade).save(buffer, "PNG")
    return buffer.getvalue()


def shown(data: dict[str, Any], metadata: dict[str, Any] | None = None) -> Any:
    return new_code_cell("show()", outputs=[new_output("display_data", data=data, metadata=metadata or {})])


def printed(text: str, stream: str = "stdout") -> Any:
    return new_output("stream", name=stream, text=text)


def executed(project: Any, name: str, *cells: Any, title: str = "A toy", run: str = "quick") -> Path:
    """An executed notebook, its record and its stamp, as the runner leaves them of a notebook in ``notebooks/``."""
    book = nbformat.v4.new_notebook()
    book.cells = [new_markdown_cell(f"# {title}\n\nWhat *will* be seen, for $x^2$.\n\nMore."), *cells]
    path: Path = project.reports / run / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    record = {
        "notebook": name,
        "parameters": {"profile": run, "seed": 0},
        "seed": 0,
        "versions": {"torch": "2.9"},
        "machine": "Linux x86_64",
        "device": "cpu",
        "threads": 1,
        "git_revision": "abc",
        "data": {},
        "seconds": 75.0,
        "metrics": {"toy.accuracy": 0.97},
    }
    write_json(project.reports / run / "records" / f"{name}.json", record)
    project.notebook(name)
    stamp(project, name, run)
    return path


def stamp(project: Any, name: str, run: str = "quick") -> None:
    """What the runner would say of these files if it had just left them."""
    source = project.root / "notebooks" / f"{name}.ipynb"
    made_from = runner.fingerprint(source, profile_parameters(source, run))
    runner.write_stamp(project.reports / run, name, made_from, run)
