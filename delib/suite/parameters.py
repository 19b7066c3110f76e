"""The parameters of a notebook: what its one tagged cell defines, and whether what is given for them fits."""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import tokenize
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROFILES = ("smoke", "quick", "paper")
LITERALS = (bool, int, float, str, list, dict, type(None))
REQUIRED = ("profile", "seed")


@dataclass(frozen=True)
class Parameter:
    """A parameter's default, which also fixes its type, and the comment that gives its unit and meaning."""

    default: Any
    comment: str


def read_cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook of format 4, each ``source`` as one string. Raises ValueError if it is not one."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        if content["nbformat"] != 4:
            raise ValueError(f"format {content['nbformat']}")
        return [{"metadata": {}, **cell, "source": "".join(cell["source"])} for cell in content["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook}: not a notebook of format 4 ({error}); save it again with JupyterLab") from None


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook takes, in its order.

    The one cell tagged ``parameters`` may hold only assignments of literals, each with a comment behind it, among
    them `profile` and `seed`. Raises ValueError, naming the notebook and the line, where it does not.
    """
    tagged = [cell for cell in read_cells(notebook) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name}: has {len(tagged)} cells tagged `parameters`, needs exactly one")
    source = tagged[0]["source"]
    try:
        statements, comments = ast.parse(source).body, _comments(source)
    except SyntaxError as error:
        raise ValueError(f"{notebook.name}: the parameters cell is not Python ({error.msg})") from None
    parameters = {}
    for statement in statements:
        line = f"{notebook.name}: `{(ast.get_source_segment(source, statement) or '').splitlines()[0]}`"
        name, value = _assignment(statement, line)
        if not (comment := comments.get(statement.end_lineno or 0, "")):
            raise ValueError(f"{line} in the parameters cell needs a comment behind it: unit and meaning")
        parameters[name] = Parameter(value, comment)
    for name in REQUIRED:
        if name not in parameters:
            raise ValueError(f"{notebook.name}: the parameters cell must define `{name}`")
    return parameters


def _assignment(statement: ast.stmt, line: str) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=node) | ast.AnnAssign(target=ast.Name(id=name), value=node):
            try:
                value = ast.literal_eval(node) if node else None
            except (ValueError, TypeError):
                raise ValueError(f"{line} in the parameters cell is no literal; compute it in the next cell") from None
            if isinstance(value, LITERALS):
                return name, value
    raise ValueError(f"{line} in the parameters cell: only `name = literal  # comment` may stand there")


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def check_parameters(notebook: Path, given: Mapping[str, Any], *, text: bool = False) -> dict[str, Any]:
    """The given values, checked against the notebook's parameters cell and made the right type.

    With ``text`` (from a command line) strings are first read as the type of the default: "1e-3" for a float is 0.001,
    "true" for a bool is True, lists and dicts as Python or JSON literals. An int serves where a float is expected.
    Raises ValueError, in one line, on an unknown name (naming the nearest right one) or a value of another type.
    """
    known = read_parameters(notebook)
    checked = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"{notebook.stem} has no parameter `{name}`; {hint}")
        default = known[name].default
        read = from_text(value, default) if text and isinstance(value, str) else value
        try:
            checked[name] = conform(read, default)
        except (ValueError, OverflowError):  # an int may be too large for a float
            raise ValueError(
                f"{notebook.stem}: parameter `{name}` must be {_kind(default)} such as {default!r}, got {read!r}"
            ) from None
    return checked


def from_text(text: str, default: Any) -> Any:
    """A command line's text read as the type of ``default``; the text itself if it cannot be read so."""
    if isinstance(default, str):
        return text
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(default, bool):
        return words.get(text.lower(), text)
    for read in (ast.literal_eval, json.loads, float):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def conform(value: Any, default: Any) -> Any:
    """``value`` as the type of ``default``: exactly it, but an int may stand for a float; elements likewise.

    A default of None takes any literal; an empty list or dict takes any elements. Raises ValueError otherwise.
    """
    if default is None and isinstance(value, LITERALS):
        return value
    if type(default) is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not type(default) or (type(default) is float):
        raise ValueError(f"{value!r} is not {_kind(default)}")
    if isinstance(default, list) and default:
        return [conform(element, default[0]) for element in value] if _uniform(default) else value
    if isinstance(default, dict) and default:
        first = next(iter(default.values()))
        return {k: conform(v, first) for k, v in value.items()} if _uniform(list(default.values())) else value
    return value


def named_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The files and folders there are that texts among the values name, as seen from ``folder``, by these texts."""
    found = {text: _path(text, folder) for value in values.values() for text in _texts(value)}
    return {text: path for text, path in found.items() if path is not None}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a literal, however deep, keys of dicts included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for element in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(element)


def _path(text: str, folder: Path) -> Path | None:
    try:
        path = folder / Path(text).expanduser()
        return path if text.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL in it, the home of nobody
        return None


def _uniform(values: list[Any]) -> bool:
    return len({type(value) for value in values}) == 1


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    return names.get(type(value), f"a {type(value).__name__} of like elements")


def profile_parameters(notebook: Path, profile: str) -> dict[str, Any]:
    """What a profile sets: its name, and the section ``[<notebook>.<profile>]`` of ``profiles.toml`` beside it.

    ``quick`` is the literals in the parameters cell themselves. Raises ValueError on an unknown profile, on a
    section for ``quick``, and on overrides that do not fit the notebook.
    """
    if profile not in PROFILES:
        raise ValueError(f"there is no profile `{profile}`; choose one of {', '.join(PROFILES)}")
    path = notebook.with_name("profiles.toml")
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8")).get(notebook.stem, {}) if path.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if strays := set(sections) - set(PROFILES[::2]):
        raise ValueError(
            f"{path.name}: section `{notebook.stem}.{min(strays)}` has no use; quick is the parameters cell itself, "
            f"the others are {' and '.join(PROFILES[::2])}"
        )
    try:
        return check_parameters(notebook, {"profile": profile, **sections.get(profile, {})})
    except ValueError as error:
        raise ValueError(f"profile {profile}: {error}") from None
