"""A small project of its own for the tests of runner, command line and report: two notebooks that take seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PARAMETERS = """\
profile = "quick"  # smoke, quick or paper
seed = 0  # fixes every random choice
epochs = 2  # passes over the data
rate = 0.1  # learning rate, per step
deep = False  # also do the slow part
sparsities = [0.5, 0.9]  # shares of zeros
"""

FIRST = [
    ("markdown", "# The first\n\nOne paragraph with $w_j$ says what will be seen."),
    ("code", PARAMETERS, "parameters"),
    ("code", 'import os\n\nfrom delib.records import Run\n\nrun = Run("00_first", globals())'),
    ("markdown", "## A formula\n\n$$\\sum_i \\frac{p_i}{q_i}$$\n\nSee [the second](01_second.ipynb)."),
    ("code", "print(f\"batch {os.environ.get('DELIB_BATCH')}, epochs {epochs}, rate {rate}, deep {deep}\")"),
    ("code", 'run.add("net", accuracy=0.9, magnitude=0.8, epochs=epochs)\nrun.write()'),
]

SECOND = [
    ("markdown", "# The second <b>one</b>\n\nIt moves."),
    ("code", PARAMETERS, "parameters"),
    ("code", 'from delib.records import Run\n\nrun = Run("01_second", globals())'),
    (
        "code",
        "import matplotlib.pyplot as plt\n\n"
        "from delib.explore import Explorer, Frame\n"
        "from delib.figures import house_style, png, show\n\n"
        "with house_style():\n    figure, axes = plt.subplots(figsize=(3, 2))\n    axes.plot([0, 1])\n"
        'show(figure, "A line that rises & rises.")',
    ),
    (
        "code",
        "frames = []\nfor percent in 0, 50, 90:\n    figure, axes = plt.subplots(figsize=(2, 1))\n"
        "    axes.bar([0, 1], [percent, 100])\n"
        '    frames.append(Frame(f"{percent}%", png(figure), f"A bar at {percent}", f"caption {percent}"))\n'
        'Explorer(frames, "First explorer").show()\nExplorer(frames, "Second explorer", start=2).show()',
    ),
    ("code", "import ipywidgets\n\nipywidgets.IntSlider()"),
    ("code", "run.write()"),
]

CLAIMS = """\
[[claim]]
text = "Accurate"
source = "project"
metric = "00_first:net.accuracy"
at_least = 0.85

[[claim]]
text = "Far better than magnitude"
source = "project"
metric = "00_first:net.accuracy"
minus = "00_first:net.magnitude"
above = 0.5
unit = "points"

[[claim]]
text = "Not looked at"
source = "paper"
metric = "09_none:net.ratio"
at_least = 40
unit = "times"
"""


def notebook(cells: list[tuple[str, ...]]) -> str:
    """A notebook of (kind, source, tags...) as JSON."""
    made: list[dict[str, Any]] = []
    for i, (kind, source, *tags) in enumerate(cells):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": tags}, "source": source}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content)


def make_project(root: Path) -> Path:
    """A project folder with two small notebooks and claims."""
    (root / "notebooks").mkdir()
    (root / "reports").mkdir()
    (root / "notebooks" / "00_first.ipynb").write_text(notebook(FIRST))
    (root / "notebooks" / "01_second.ipynb").write_text(notebook(SECOND))
    (root / "notebooks" / "profiles.toml").write_text("[00_first.smoke]\nepochs = 1\nrate = 1\n")
    (root / "reports" / "claims.toml").write_text(CLAIMS)
    (root / "README.md").write_text("# Title\n\n<!-- claims -->\nold\n<!-- /claims -->\n\nThe end.\n")
    return root


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh small project, which delib takes for its own."""
    monkeypatch.setenv("DELIB_HOME", str(tmp_path))
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small project's folder, run and compiled once in profile smoke; to be read only."""
    from delib import report, runner

    root = make_project(tmp_path_factory.mktemp("compiled"))
    before = os.environ.get("DELIB_HOME")
    os.environ["DELIB_HOME"] = str(root)
    try:
        runner.run_all("smoke")
        report.compile_report("smoke")
    finally:
        os.environ.pop("DELIB_HOME") if before is None else os.environ.update(DELIB_HOME=before)
    yield root
