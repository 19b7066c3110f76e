"""The checkout that the tests belong to: its files, its metadata, what its modules import."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "delib").with_suffix("").parts)
    for path in (ROOT / "delib").rglob("*.py")
    if path.name != "__init__.py"
)
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def tracked() -> list[Path]:
    """The files that git has, or would have: a clean checkout of the tree as it stands."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [Path(name) for name in dict.fromkeys(names) if name and (ROOT / name).is_file()]


def source(module: str) -> Path:
    """The file of a module of delib, named as in ``nn.layers``."""
    return ROOT / "delib" / f"{module.replace('.', '/')}.py"


def imported(module: str) -> set[str]:
    """Full names of all that a module imports, also within functions; relative imports are none of the house."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            parts = [node.module or ""] if node.module != "delib" else [f"delib.{alias.name}" for alias in node.names]
            names |= set(parts)
    return names
