"""Parameters: what a notebook takes, what fits, and one clear line for what does not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from delib.suite.parameters import check_parameters, profile_parameters, read_parameters

CELL = """profile = "quick"  # which set of values
seed = 0  # of chance
epochs = 3  # passes over the data
learning_rate = 0.1  # of gradient descent
shuffle = True  # between passes
name = "lenet5"  # network
layers = ["fc1"]  # to sparsify
targets = {"fc1": 0.9, "fc2": 0.8}  # sparsity of each layer
nested = {"lenet5": {"fc1": 0.9}}  # targets by network
limit = None  # images, or all
ordered: list[int] = [  # several lines
    1,
    2,
]  # sizes"""


@pytest.fixture
def notebook(project: Any) -> Path:
    path: Path = project.notebook("10_toy", parameters=CELL)
    return path


def test_defaults_and_comments_are_read(notebook: Path) -> None:
    parameters = read_parameters(notebook)
    assert parameters["targets"].default == {"fc1": 0.9, "fc2": 0.8}
    assert parameters["ordered"].default == [1, 2]
    assert parameters["learning_rate"].comment == "of gradient descent"
    assert parameters["ordered"].comment == "sizes"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epoch", "did you mean `epochs`?"),
        ("lerning_rate", "did you mean `learning_rate`?"),
        ("zzz", "it takes profile"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(notebook: Path, name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"^10_toy has no parameter `{name}`; ") as refusal:
        check_parameters(notebook, {name: 1})
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", "2", 2.0),
        ("epochs", "-5", -5),
        ("epochs", "1_000", 1000),
        ("shuffle", "true", True),
        ("shuffle", "False", False),
        ("shuffle", "no", False),
        ("name", "7", "7"),
        ("name", "true", "true"),
        ("layers", '["fc1", "fc2"]', ["fc1", "fc2"]),
        ("layers", "[]", []),
        ("targets", "{'fc1': 1}", {"fc1": 1.0}),
        ("targets", '{"fc1": 5e-1}', {"fc1": 0.5}),
        ("nested", '{"lenet300": {"fc1": 1, "fc2": 0.5}}', {"lenet300": {"fc1": 1.0, "fc2": 0.5}}),
        ("limit", "100", 100),
        ("limit", "null", None),
        ("limit", "None", None),
    ],
)
def test_a_command_line_s_text_is_read_as_the_default_s_type(notebook: Path, name: str, text: str, value: Any) -> None:
    (read,) = check_parameters(notebook, {name: text}, text=True).values()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("epochs", 1.5, "a whole number such as 3"),
        ("epochs", True, "a whole number such as 3"),
        ("epochs", "3", "a whole number such as 3"),
        ("learning_rate", "1e-3", "a finite number such as 0.1"),
        ("learning_rate", math.nan, "a finite number"),
        ("learning_rate", math.inf, "a finite number"),
        ("learning_rate", 10**400, "a finite number"),
        ("learning_rate", True, "a finite number"),
        ("shuffle", 1, "true or false"),
        ("name", 5, "a text"),
        ("layers", "fc1", "a list"),
        ("layers", [1], "a list"),
        ("targets", {"fc1": "much"}, "a dict"),
        ("targets", [0.9], "a dict"),
        ("nested", {"lenet5": 0.9}, "a dict"),
    ],
)
def test_a_value_of_another_type_is_refused(notebook: Path, name: str, value: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^10_toy: parameter `{name}` must be {kind}") as refusal:
        check_parameters(notebook, {name: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "1.5"),
        ("epochs", "many"),
        ("epochs", ""),
        ("epochs", "__import__('os').getcwd()"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "1" + 400 * "0"),
        ("shuffle", "1"),
        ("shuffle", "maybe"),
        ("layers", "fc1"),
        ("targets", "[0.9]"),
        ("targets", "{'fc1': 0.9"),
    ],
)
def test_a_text_that_cannot_be_read_so_is_refused(notebook: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"^10_toy: parameter `{name}` must be "):
        check_parameters(notebook, {name: text}, text=True)


def test_a_profile_s_section_is_what_it_changes(project: Any, notebook: Path) -> None:
    project.profiles("[10_toy.smoke]\nepochs = 1\nlearning_rate = 1\n[11_other.smoke]\nx = 1\n")
    assert profile_parameters(notebook, "smoke") == {"profile": "smoke", "epochs": 1, "learning_rate": 1.0}
    assert profile_parameters(notebook, "paper") == {"profile": "paper"}
    assert profile_parameters(notebook, "quick") == {"profile": "quick"}


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[10_toy.smoke]\nepoch = 1", "profile smoke: .*`epoch`; did you mean `epochs`"),
        ("[10_toy.smoke]\nepochs = '1'", "profile smoke: .*`epochs` must be a whole number"),
        ("[10_toy.quick]\nepochs = 1", "section `10_toy.quick` has no use"),
        ("[10_toy.smok]\nepochs = 1", "section `10_toy.smok` has no use"),
        ("[10_toy.smoke\n", "profiles.toml: "),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(project: Any, notebook: Path, toml: str, complaint: str) -> None:
    project.profiles(toml)
    with pytest.raises(ValueError, match=complaint):
        profile_parameters(notebook, "smoke")


def test_an_unknown_profile_is_refused(notebook: Path) -> None:
    with pytest.raises(ValueError, match="no profile `fast`; choose one of smoke, quick, paper"):
        profile_parameters(notebook, "fast")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("half = 1 / 2  # x", "`half = 1 / 2` .* is no literal; compute it in the next cell"),
        ("import os  # x", "`import os` .*only `name = literal"),
        ("a, b = 1, 2  # x", "only `name = literal"),
        ("pair = (1, 2)  # x", "only `name = literal"),
        ("odd = {[]: 1}  # x", "is no literal"),
        ("width = 3", "`width = 3` .* needs a comment behind it"),
        ("width = # x", "is not Python"),
        ("width = [1,  # x", "is not Python"),
        ("%matplotlib inline", "is not Python"),
    ],
)
def test_a_parameters_cell_with_anything_else_is_refused(project: Any, line: str, complaint: str) -> None:
    notebook = project.notebook("10_toy", parameters=f"{CELL}\n{line}")
    with pytest.raises(ValueError, match=rf"^10_toy\.ipynb: .*{complaint}") as refusal:
        read_parameters(notebook)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("missing", ["profile", "seed"])
def test_profile_and_seed_are_not_optional(project: Any, missing: str) -> None:
    lines = [line for line in CELL.splitlines() if not line.startswith(missing)]
    with pytest.raises(ValueError, match=f"must define `{missing}`"):
        read_parameters(project.notebook("10_toy", parameters="\n".join(lines)))


@pytest.mark.parametrize("tagged", [0, 2])
def test_there_is_exactly_one_parameters_cell(notebook: Path, tagged: int) -> None:
    content = json.loads(notebook.read_text())
    content["cells"] = [c for c in content["cells"] if c["cell_type"] != "code"] + content["cells"][1:2] * tagged
    notebook.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"has {tagged} cells tagged `parameters`, needs exactly one"):
        read_parameters(notebook)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"nbformat": 3, "worksheets": []}', '{"nbformat": 4, "cells": [{}]}', "\x00\x01"],
)
def test_what_is_no_notebook_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "10_bad.ipynb"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"10_bad\.ipynb: not a notebook of format 4") as refusal:
        read_parameters(path)
    assert "\n" not in str(refusal.value)
