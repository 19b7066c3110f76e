"""The parameters of a notebook: what its one tagged cell defines, and whether what is given for them fits.

A parameter's comment is ``range: meaning``, for the reader and for the checks: ``bits = 4  # 1..8: per survivor``.

- ``1..8``, ``0..``, ``..5`` are numbers with both ends included; ``0..<1`` and ``0<..1`` exclude an end.
- ``one of a, b, c`` are names or numbers, ``of these`` those in the default; ``any`` is free. In lists and dicts a
  range holds for every element.
- ``a recipe`` names a table ``[<notebook>.<parameter>.<name>]`` of profiles.toml. The recipe that the cell names is the
  base: it has every field, each with ``# range: meaning`` behind it, also in sub-tables with headings of their own.
  Other recipes state what differs. ``-p recipe.levels.steps 500`` sets one field. An inline table is one value.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

PROFILES = ("smoke", "quick", "paper")
LITERALS = (bool, int, float, str, list, dict, type(None))
REQUIRED = ("profile", "seed")
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
INTERVAL = re.compile(rf"(?P<low>{NUMBER})?(?P<above><)?\.\.(?P<below><)?(?P<high>{NUMBER})?")
THESE, RECIPE = "of these", "a recipe"


@dataclass(frozen=True)
class Parameter:
    """A parameter's default, which also fixes its type, and the comment that gives its range and meaning.

    Of a recipe, the default is the base's content, ``fields`` are the base's by dotted names, and ``recipes`` holds
    what each recipe states.
    """

    default: Any
    comment: str
    fields: Mapping[str, Parameter] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def range(self) -> str:
        """The range that the comment begins with; empty if it gives none."""
        text = self.comment.partition(":")[0].strip()
        known = INTERVAL.fullmatch(text) or text.startswith("one of ") or text in ("any", THESE, RECIPE)
        return text if known and ":" in self.comment else ""

    def check(self, name: str, value: Any) -> Any:
        """``value`` as the default's type. Raises ValueError, in one line, where type or range are others."""
        try:
            fitting = conform(value, self.default)
        except (ValueError, OverflowError):  # an int may be too large for a float
            example = f"{_kind(self.default)} such as {self.default!r}"
            raise ValueError(f"{name} must be {example}, got {value!r}") from None
        allowed = self.range
        if allowed == THESE:
            allowed = f"one of {', '.join(map(str, _leaves(self.default)))}"
        if not all(_within(leaf, allowed) for leaf in _leaves(fitting)):
            meaning = self.comment.partition(":")[2].strip()
            within = "" if allowed.startswith("one of ") else "within "
            raise ValueError(f"{name} must be {within}{allowed} ({meaning}), got {value!r}")
        return fitting


def _within(value: Any, allowed: str) -> bool:
    if allowed.startswith("one of "):
        return value is None or str(value) in re.split(r",\s*", allowed.removeprefix("one of "))
    interval = INTERVAL.fullmatch(allowed)
    if interval is None or type(value) not in (int, float):
        return True
    low, high = float(interval["low"] or -math.inf), float(interval["high"] or math.inf)
    return (low < value if interval["above"] else low <= value) and (
        value < high if interval["below"] else value <= high
    )


def _leaves(value: Any, keys: bool = False) -> Iterator[Any]:
    """All numbers and texts in a literal, however deep; with ``keys`` those of dicts too."""
    if isinstance(value, dict):
        value = [*(value if keys else ()), *value.values()]
    if isinstance(value, list):
        for element in value:
            yield from _leaves(element, keys)
    else:
        yield value


def read_cells(notebook: Path) -> list[Any]:
    """The cells of a notebook of format 4, as nbformat reads them. Raises ValueError if it is not one."""
    import nbformat  # the command line needs to be quick

    try:
        book = nbformat.v4.reads(notebook.read_text(encoding="utf-8"))
        if book.nbformat != 4:
            raise ValueError(f"format {book.nbformat}")
        if not all(isinstance(cell["source"], str) for cell in book.cells):
            raise TypeError("a cell's source is no text")
        return list(book.cells)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{notebook}: not a notebook of format 4 ({error}); save it again with JupyterLab") from None


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook takes, in its order.

    The one cell tagged ``parameters`` may hold only assignments of literals, each with a comment behind it, among
    them `profile` and `seed`. Raises ValueError, naming the notebook and the line, where it does not, and where a
    default is outside its range.
    """
    tagged = [cell for cell in read_cells(notebook) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name}: has {len(tagged)} cells tagged `parameters`, needs exactly one")
    source = tagged[0]["source"]
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{notebook.name}: the parameters cell is not Python ({error.msg})") from None
    parameters = {}
    for statement in statements:
        line = f"{notebook.name}: `{(ast.get_source_segment(source, statement) or '').splitlines()[0]}`"
        name, value = _assignment(statement, line)
        if not (comment := _comment_behind(statement, source)):
            raise ValueError(f"{line} in the parameters cell needs a comment behind it: range and meaning")
        parameters[name] = Parameter(value, comment)
        if parameters[name].range == RECIPE:
            parameters[name] = _recipe(notebook, name, parameters[name])
        else:
            parameters[name].check(_where(notebook, name), value)
    for name in REQUIRED:
        if name not in parameters:
            raise ValueError(f"{notebook.name}: the parameters cell must define `{name}`")
    return parameters


def _recipe(notebook: Path, name: str, named: Parameter) -> Parameter:
    """A parameter that names a recipe, with what profiles.toml holds of it."""
    text, sections = _profiles(notebook)
    tables, base = sections.get(name, {}), named.default
    if not isinstance(tables.get(base), dict):
        raise ValueError(f"{notebook.stem}: profiles.toml has no recipe [{notebook.stem}.{name}.{base}]")
    fields = {}
    for path, comment in _field_comments(text, f"{notebook.stem}.{name}.{base}"):
        value: Any = reduce(getitem, path.split("."), tables[base])
        if not comment:
            raise ValueError(f"profiles.toml: `{path}` of recipe {base} needs a comment behind it: range and meaning")
        fields[path] = Parameter(value, comment)
        fields[path].check(_where(notebook, f"{name}.{path}"), value)
    return Parameter(tables[base], named.comment, fields, tables)


def _field_comments(text: str, section: str) -> Iterator[tuple[str, str]]:
    """Dotted names, below a heading of a TOML file and its sub-tables', and the comment behind each value."""
    table, name, found = "", "", {}
    for line in text.splitlines():
        if heading := re.match(r"\[([^\]]+)\]", line):
            table, name = heading[1] + ".", ""
        elif assigned := re.match(r"([\w.-]+)\s*=", line):
            name = table + assigned[1]
            found[name] = ""
        if name and (comment := re.search(r"\s#\s*(.+)", line)):
            found[name] = comment[1]
    return ((name.removeprefix(f"{section}."), said) for name, said in found.items() if name.startswith(f"{section}."))


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


def _comment_behind(statement: ast.stmt, source: str) -> str:
    line = source.splitlines()[(statement.end_lineno or 0) - 1].encode()  # ast counts bytes
    behind = line[statement.end_col_offset :].decode().strip()
    return behind.strip("# ") if behind.startswith("#") else ""


def check_parameters(
    notebook: Path, given: Mapping[str, Any], *, text: bool = False, over: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The given values, checked against the notebook's parameters cell and made the right type.

    With ``text`` (from a command line) strings are first read as the type of the default: "1e-3" for a float is 0.001,
    "true" for a bool is True, lists and dicts as Python or JSON literals. An int serves where a float is expected. A
    recipe is given by its name, by fields (``recipe.steps``, or a dict) or by both, and comes out whole; fields alone
    are laid over the recipe in ``over``, by default the base. Raises ValueError, in one line, on an unknown name
    (naming the nearest right one) or a value of another type or outside its range.
    """
    known = read_parameters(notebook)
    every = known | {f"{name}.{path}": p for name, outer in known.items() for path, p in outer.fields.items()}
    chosen: dict[str, Any] = {}
    for name in sorted(given, key=lambda name: name.count(".")):  # a recipe before its fields
        parameter, value = _known(notebook, every, name), given[name]
        outer, *tables = name.split(".")
        if text and isinstance(value, str):
            value = from_text(value, parameter.default)
        if not (recipe := known[outer]).fields:
            chosen[name] = parameter.check(_where(notebook, name), value)
            continue
        base = chosen.get(outer, (over or {}).get(outer, recipe.default))
        for table in reversed(tables):
            value = {table: value}
        if not isinstance(value, dict):
            if str(value) not in recipe.recipes:
                hint = _hint(str(value), recipe.recipes)
                raise ValueError(f"{notebook.stem}: {name} has no recipe `{value}`; {hint}")
            base, value = recipe.default, recipe.recipes[str(value)]
        chosen[outer] = _laid_over(notebook, every, base, value, outer)
    return chosen


def _laid_over(
    notebook: Path, every: Mapping[str, Parameter], base: Mapping[str, Any], given: Mapping[str, Any], table: str
) -> dict[str, Any]:
    """A recipe's table with the given values, checked, over the base's; only its sub-tables are gone into."""
    laid = dict(base)
    for name, value in given.items():
        path = f"{table}.{name}"
        if path not in every and isinstance(value, dict) and isinstance(base.get(name), dict):
            laid[name] = _laid_over(notebook, every, base[name], value, path)
        else:
            laid[name] = _known(notebook, every, path).check(_where(notebook, path), value)
    return laid


def _known(notebook: Path, every: Mapping[str, Parameter], name: str) -> Parameter:
    if name not in every:
        raise ValueError(f"{notebook.stem} has no parameter `{name}`; {_hint(name, every)}")
    return every[name]


def _where(notebook: Path, name: str) -> str:
    return f"{notebook.stem}: parameter `{name}`"


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(known)}"


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
    elements = list(default.values()) if isinstance(default, dict) else default if isinstance(default, list) else []
    if len({type(element) for element in elements}) != 1:
        return value
    if isinstance(value, dict):
        return {name: conform(element, elements[0]) for name, element in value.items()}
    return [conform(element, elements[0]) for element in value]


def named_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The files and folders there are that texts among the values name, as seen from ``folder``, by these texts."""
    found = {}
    for text in _leaves(list(values.values()), keys=True):
        try:
            path = folder / Path(text).expanduser()
            if text.strip() and path.exists():
                found[text] = path
        except (OSError, ValueError, RuntimeError, TypeError):
            pass  # no text, too long for a name, a NUL in it, the home of nobody
    return found


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
    sections = _profiles(notebook)[1]
    recipes = {name for name, parameter in read_parameters(notebook).items() if parameter.fields}
    if strays := set(sections) - set(PROFILES[::2]) - recipes:
        raise ValueError(
            f"profiles.toml: section `{notebook.stem}.{min(strays)}` has no use; quick is the parameters cell itself, "
            f"the others are {' and '.join(PROFILES[::2])}"
        )
    try:
        return check_parameters(notebook, {"profile": profile, **sections.get(profile, {})})
    except ValueError as error:
        raise ValueError(f"profile {profile}: {error}") from None


def _profiles(notebook: Path) -> tuple[str, dict[str, Any]]:
    """The text of ``profiles.toml`` beside a notebook, and its tables for that notebook."""
    path = notebook.with_name("profiles.toml")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        return text, tomllib.loads(text).get(notebook.stem, {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from None
