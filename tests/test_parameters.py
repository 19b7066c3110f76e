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


RANGES = """profile = "quick"  # one of smoke, quick, paper: which set of values
seed = 0  # 0..: of chance
bits = 4  # 1..8: bits per survivor
sparsity = 0.9  # 0..<1: share of weights
rate = 0.1  # 0<..1: of learning
shift = 0.0  # -1.5..1e1: of time: hours
criterion = "obs"  # one of random, magnitude, obs: proposes
sizes = {"fc1": 0.9, "deep": {"fc2": 0.5}}  # 0..<1: sparsities
methods = ["alps", "wanda"]  # of these: compared
levels = [1, 2]  # one of 1, 2, 4: of each
path = ""  # any: of a file"""


@pytest.mark.parametrize(
    ("name", "good", "bad", "range"),
    [
        ("bits", [1, 8], [0, 9, 99], r"within 1\.\.8 \(bits per survivor\)"),
        ("seed", [0, 10**9], [-1], r"within 0\.\. \(of chance\)"),
        ("sparsity", [0, 0.999], [1, 1.5, -0.1], r"within 0\.\.<1 \(share of weights\)"),
        ("rate", [1e-9, 1], [0, 1.1], r"within 0<\.\.1 \(of learning\)"),
        ("shift", [-1.5, 10], [-1.6, 10.1], r"within -1\.5\.\.1e1 \(of time: hours\)"),
        ("criterion", ["random", "obs"], ["obd", ""], r"one of random, magnitude, obs \(proposes\)"),
        (
            "sizes",
            [{"fc1": 0}, {"deep": {"x": 0.2}}],
            [{"fc1": 1.0}, {"fc1": 0.1, "a": {"b": -1.0}}],
            r"within 0\.\.<1",
        ),
        ("levels", [[4], []], [[3], [1, 0]], "one of 1, 2, 4"),
        ("methods", [["wanda"], []], [["obs"], ["alps", ""]], r"one of alps, wanda \(compared\)"),
        ("path", ["", "0..1"], [], ""),
        ("profile", ["paper"], ["pap"], "one of smoke, quick, paper"),
    ],
)
def test_a_value_outside_the_range_of_its_comment_is_refused(
    project: Any, name: str, good: list[Any], bad: list[Any], range: str
) -> None:
    notebook = project.notebook("10_toy", parameters=RANGES)
    for value in good:
        assert check_parameters(notebook, {name: value}) == {name: value}
    for value in bad:
        with pytest.raises(ValueError, match=rf"^10_toy: parameter `{name}` must be {range}.*, got ") as refusal:
            check_parameters(notebook, {name: value})
        assert "\n" not in str(refusal.value)


def test_defaults_and_profiles_are_held_to_the_ranges_too(project: Any) -> None:
    notebook = project.notebook("10_toy", parameters=RANGES)
    project.profiles("[10_toy.smoke]\nbits = 9\n")
    with pytest.raises(ValueError, match=r"^profile smoke: 10_toy: parameter `bits` must be within 1\.\.8 .* got 9$"):
        profile_parameters(notebook, "smoke")
    with pytest.raises(ValueError, match=r"^10_toy: parameter `bits` must be within 1\.\.8 .* got 0$"):
        read_parameters(project.notebook("10_toy", parameters=RANGES.replace("bits = 4", "bits = 0")))


@pytest.mark.parametrize("comment", ["bits", "1...8: bits", "see 1..8: bits", "1..8 bits", "one of us"])
def test_a_comment_without_a_range_allows_all_of_the_type(project: Any, comment: str) -> None:
    notebook = project.notebook("10_toy", parameters=f"{RANGES}\nfree = 4  # {comment}")
    assert read_parameters(notebook)["free"].range == ""
    assert check_parameters(notebook, {"free": 99}) == {"free": 99}


RECIPES = """[10_toy.smoke]
recipe = "brief"
[10_toy.recipe.own]
rate = 0.1  # 0<..1: of learning
shape = { fc1 = 0.5, fc2 = 1 }  # 0..1: sparsities of layers
parts = [
  [1, 0.5],
]  # 0..: steps and rates
[10_toy.recipe.own.levels]  # of the second part
steps = 60  # 0..: of distillation
network.depth = 2  # 1..: layers
[10_toy.recipe.brief]
shape = { fc9 = 0.25 }
levels.steps = 3
[11_other.recipe.own]
rate = "x"  # another notebook's
"""
OWN = {
    "rate": 0.1,
    "shape": {"fc1": 0.5, "fc2": 1},
    "parts": [[1, 0.5]],
    "levels": {"steps": 60, "network": {"depth": 2}},
}
BRIEF = OWN | {"shape": {"fc9": 0.25}, "levels": {"steps": 3, "network": {"depth": 2}}}


@pytest.fixture
def cook(project: Any) -> Path:
    project.profiles(RECIPES)
    path: Path = project.notebook("10_toy", parameters=f'{RANGES}\nrecipe = "own"  # a recipe: how it is trained')
    return path


def test_a_recipe_is_named_and_its_fields_can_be_given_one_by_one(cook: Path) -> None:
    assert read_parameters(cook)["recipe"].default == OWN
    assert profile_parameters(cook, "smoke") == {"profile": "smoke", "recipe": BRIEF}
    assert profile_parameters(cook, "paper") == {"profile": "paper"}
    assert check_parameters(cook, {"recipe": "brief"}, text=True) == {"recipe": BRIEF}
    longer = {**OWN, "levels": {**OWN["levels"], "steps": 500}}
    assert check_parameters(cook, {"recipe.levels.steps": "500"}, text=True) == {"recipe": longer}
    assert check_parameters(cook, {"recipe": {"levels": {"steps": 500}}}) == {"recipe": longer}
    both = {"recipe.rate": "1", "bits": "2", "recipe": "brief"}
    assert check_parameters(cook, both, text=True) == {"bits": 2, "recipe": BRIEF | {"rate": 1.0}}
    assert check_parameters(cook, {"recipe": BRIEF}) == {"recipe": BRIEF}, "as it comes out it goes in"
    smoke = profile_parameters(cook, "smoke")
    assert check_parameters(cook, {"recipe.rate": 1}, over=smoke) == {"recipe": BRIEF | {"rate": 1.0}}
    assert check_parameters(cook, {"recipe": "own", "recipe.rate": 1}, over=smoke) == {"recipe": OWN | {"rate": 1.0}}
    assert check_parameters(cook, {"recipe.rate": 1}, over={"bits": 2}) == {"recipe": OWN | {"rate": 1.0}}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("recipe", "bref", "10_toy: recipe has no recipe `bref`; did you mean `brief`"),
        ("recipe", "7", "10_toy: recipe has no recipe `7`; it takes own, brief"),
        ("recipe", "[1]", r"10_toy: recipe has no recipe `\[1\]`"),
        ("recipe.levels.step", "1", "10_toy has no parameter `recipe.levels.step`; did you mean `recipe.levels.steps`"),
        ("recipe", "{'rats': 1}", "10_toy has no parameter `recipe.rats`; did you mean `recipe.rate`"),
        ("rats", "1", "10_toy has no parameter `rats`; did you mean `rate`"),
        ("shape", "{}", "10_toy has no parameter `shape`; did you mean `recipe.shape`"),
        ("recipe.levels.steps", "1.5", "10_toy: parameter `recipe.levels.steps` must be a whole number such as 60"),
        ("recipe.levels.steps", "-1", r"10_toy: parameter `recipe.levels.steps` must be within 0\.\. \(of distil"),
        ("recipe.levels.network.depth", "0", r"must be within 1\.\. \(layers\)"),
        ("recipe.shape", "{'fc1': 2}", r"10_toy: parameter `recipe.shape` must be within 0\.\.1"),
        ("recipe.levels", "{'steps': 1}", "10_toy has no parameter `recipe.levels`"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(cook: Path, name: str, value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        check_parameters(cook, {name: value}, text=True)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("  # 0<..1: of learning", "", "profiles.toml: `rate` of recipe own needs a comment behind it"),
        ("rate = 0.1", "rate = 0", r"10_toy: parameter `recipe.rate` must be within 0<\.\.1"),
        ("levels.steps = 3", "levels.stops = 3", "`recipe.levels.stops`; did you mean `recipe.levels.steps`"),
        ('recipe = "brief"', 'recipe = "none"', "profile smoke: 10_toy: recipe has no recipe `none`"),
        (".own", ".other", r"10_toy: profiles.toml has no recipe \[10_toy\.recipe\.own\]"),
    ],
)
def test_recipes_of_profiles_are_checked(project: Any, cook: Path, before: str, after: str, complaint: str) -> None:
    project.profiles(RECIPES.replace(before, after))
    with pytest.raises(ValueError, match=complaint):
        profile_parameters(cook, "smoke")
