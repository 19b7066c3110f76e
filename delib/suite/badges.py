"""Badges for Binder and Colab, which need the repository's public address, and Colab's copies of the notebooks."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from delib.files import project_root, write_bytes
from delib.suite.claims import between
from delib.suite.runner import notebooks

MARKERS = "<!-- badges -->", "<!-- /badges -->"
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
FOLDER = "colab"
FIRST_CELL = """\
# In Colab only: the repository, and what it needs beside Colab's own packages; elsewhere this does nothing.
import os

if "COLAB_RELEASE_TAG" in os.environ:
    !git clone -q https://github.com/{repository} repository
    %cd repository
    %pip install -q ."""


def write_badges(address: str) -> list[Path]:
    """Write badges between README's markers, and each notebook with ``FIRST_CELL`` before the rest into ``colab/``.

    Raises ValueError for an ``address`` that is not https://github.com/OWNER/NAME, as Colab opens no other, and where
    README lacks the markers.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{address!r}: Colab opens no such address; expected https://github.com/OWNER/NAME")
    root, repository, sequence = project_root(), found.group(1), notebooks()
    readme = root / "README.md"
    text = with_badges(readme.read_text(encoding="utf-8"), repository, [path.stem for path in sequence])
    written = [readme]
    for path in sequence:
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        notebook.cells.insert(0, new_code_cell(FIRST_CELL.format(repository=repository), id=FOLDER))
        written.append(root / FOLDER / path.name)
        written[-1].parent.mkdir(exist_ok=True)
        write_bytes(written[-1], (nbformat.writes(notebook) + "\n").encode())
    write_bytes(readme, text.encode())
    return written


def with_badges(readme: str, repository: str, names: list[str]) -> str:
    """README's text with one badge for Binder and one for each notebook in Colab between its markers."""
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/notebooks"
    badges = [f"[![All notebooks on Binder](https://mybinder.org/badge_logo.svg)]({binder})"]
    for name in names:
        colab = f"https://colab.research.google.com/github/{repository}/blob/HEAD/{FOLDER}/{name}.ipynb"
        badges.append(f"[![{name} in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})")
    return between(readme, MARKERS, "\n".join(badges))
