"""Claims against records: what is reached, what is not, what nothing measured, and the README's table of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delib.files import write_json
from delib.suite.claims import NOT_MEASURED, NOT_REACHED, REACHED, Claim, markdown_table, read_claims, with_table

ROOT = Path(__file__).resolve().parents[1]
CLAIM = '[[claim]]\nsource = "project"\ntext = "{text}"\n{rest}\n'


def claimed(project: Any, rest: str, metrics: dict[str, float], text: str = "It works") -> Claim:
    """The one claim of a list that says ``rest``, with a record that holds ``metrics``."""
    (project.root / "reports").mkdir(exist_ok=True)
    (project.root / "reports" / "claims.toml").write_text(CLAIM.format(text=text, rest=rest))
    write_json(project.root / "reports" / "quick" / "records" / "01_a.json", {"metrics": metrics})
    (claim,) = read_claims("quick")
    return claim


@pytest.mark.parametrize(
    ("comparison", "below", "at", "above"),
    [
        ("at_least", NOT_REACHED, REACHED, REACHED),
        ("above", NOT_REACHED, NOT_REACHED, REACHED),
        ("at_most", REACHED, REACHED, NOT_REACHED),
    ],
)
def test_thresholds(project: Any, comparison: str, below: str, at: str, above: str) -> None:
    rest = f'metric = "01_a:n.accuracy"\n{comparison} = 0.9'
    found = [claimed(project, rest, {"n.accuracy": value}).verdict for value in (0.8999, 0.9, 0.9001)]
    assert found == [below, at, above]


def test_a_difference_of_two_metrics(project: Any) -> None:
    rest = 'metric = "01_a:n.teacher"\nminus = "01_a:n.decoded"\nat_most = 0.005\nunit = "points"'
    good = claimed(project, rest, {"n.teacher": 0.99, "n.decoded": 0.987})
    assert (good.verdict, good.shown, good.goal) == (REACHED, "0.30 points", "≤ 0.50 points")
    bad = claimed(project, rest, {"n.teacher": 0.99, "n.decoded": 0.98})
    assert (bad.verdict, bad.shown) == (NOT_REACHED, "1.00 points")
    for half in ({"n.teacher": 0.99}, {"n.decoded": 0.98}, {}):
        claim = claimed(project, rest, half)
        assert (claim.verdict, claim.shown) == (NOT_MEASURED, "")


@pytest.mark.parametrize("kind", [float, np.float32])
@pytest.mark.parametrize("right", [9800, 9853, 9912, 10000])
def test_fifty_of_ten_thousand_images_are_half_a_point(project: Any, right: int, kind: type[float]) -> None:
    # In floating point 0.98 - 0.975 is more than 0.005, and accuracies come as float32.
    rest = 'metric = "01_a:n.teacher"\nminus = "01_a:n.decoded"\nat_most = 0.005'
    teacher, *decoded = (float(kind(n / 10000)) for n in (right, right - 50, right - 51))
    found = [claimed(project, rest, {"n.teacher": teacher, "n.decoded": d}).verdict for d in decoded]
    assert found == [REACHED, NOT_REACHED]


def test_a_goal_met_exactly_is_met_in_float32_too(project: Any) -> None:
    metrics = {"n.accuracy": float(np.float32(0.982))}
    assert claimed(project, 'metric = "01_a:n.accuracy"\nat_least = 0.982', metrics).verdict == REACHED


def test_equal_is_not_better(project: Any) -> None:
    rest = 'metric = "01_a:n.a"\nminus = "01_a:n.b"\nabove = 0'
    assert claimed(project, rest, {"n.a": 0.1 + 0.2, "n.b": 0.3}).verdict == NOT_REACHED
    assert claimed(project, rest, {"n.a": 0.3001, "n.b": 0.3}).verdict == REACHED


def test_a_claim_of_another_notebook_s_metric_is_not_measured(project: Any) -> None:
    claim = claimed(project, 'metric = "02_b:n.accuracy"\nat_least = 0.9', {"n.accuracy": 1.0})
    assert claim.verdict == NOT_MEASURED


def test_a_claim_that_nothing_measures_yet(project: Any) -> None:
    claim = claimed(project, "", {})
    assert (claim.verdict, claim.shown, claim.goal) == (NOT_MEASURED, "", "")


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("percent", 0.98765, "98.77%"),
        ("times", 55.04, "55.0×"),
        ("bits", 4, "4 bits"),
        ("seconds", 12.4, "12 s"),
        ("bytes", 12345, "12,345 bytes"),
    ],
)
def test_numbers_are_written_with_their_unit(project: Any, unit: str, value: float, shown: str) -> None:
    claim = claimed(project, f'metric = "01_a:n.x"\nat_least = 1\nunit = "{unit}"', {"n.x": value})
    assert claim.shown == shown


@pytest.mark.parametrize(
    ("rest", "complaint"),
    [
        ('metric = "a:b"', "exactly one of at_least"),
        ('metric = "a:b"\nat_least = 1\nat_most = 2', "exactly one of at_least"),
        ("at_least = 1", "exactly one of at_least"),
        ('metric = "a:b"\nat_lest = 1', "at_lest"),
        ('metric = "a:b"\nat_least = 1\nunit = "parsec"', "unit one of percent"),
        ("source = 1", "overwrite"),
    ],
)
def test_a_malformed_list_is_refused_by_name(project: Any, rest: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^claims\.toml: .*{complaint}"):
        claimed(project, rest, {})


def test_a_list_without_claims_is_refused_by_name(project: Any) -> None:
    (project.root / "reports").mkdir()
    (project.root / "reports" / "claims.toml").write_text("x = 1")
    with pytest.raises(ValueError, match=r"claims\.toml"):
        read_claims("quick")


def test_the_table_says_what_is_not_reached() -> None:
    rows = markdown_table(
        [
            Claim("a", "paper", "MNIST", "times", "at_least", 40, 41.25),
            Claim("b", "project", "MNIST", "percent", "at_least", 0.95, 0.94),
            Claim("c", "project"),
        ]
    ).splitlines()
    assert rows[2:] == [
        "| The paper (abstract) | a | MNIST | ≥ 40.0× | 41.2× | ✓ reached |",
        "| This project | b | MNIST | ≥ 95.00% | 94.00% | ✗ **not reached** |",
        "| This project | c |  |  |  | not measured |",
    ]


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    readme = "# A\n\n<!-- claims -->\nold\n<!-- /claims -->\n\ntail \\1\n"
    new = with_table(readme, [Claim("a \\1", "paper")])
    assert new.startswith("# A\n\n<!-- claims -->\n\n| claimed by")
    assert new.endswith("<!-- /claims -->\n\ntail \\1\n")
    assert "old" not in new
    assert "a \\1" in new
    assert with_table(new, [Claim("a \\1", "paper")]) == new
    for bad in ("# A\n", "<!-- claims -->\n", readme + readme):
        with pytest.raises(ValueError, match="markers"):
            with_table(bad, [])


def test_the_readme_has_the_headlines_where_there_are_some(project: Any) -> None:
    readme = "<!-- claims -->\n<!-- /claims -->\n"
    main, other = claimed(project, "headline = true", {}, "Main"), Claim("Other", "project")
    assert main.headline
    assert "Other" not in with_table(readme, [main, other])
    assert "Other" in with_table(readme, [other])


def test_the_readme_s_numbers_are_those_of_the_reference_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELIB_HOME", raising=False)
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, read_claims("reference")) == readme, "run `make reference`"


def test_claims_on_a_shipped_student_read_its_own_record(project: Any) -> None:
    write_json(project.root / "data" / "students" / "small.json", {"metrics": {"retention_25": 0.97}})
    claim = claimed(project, 'metric = "students/small:retention_25"\nat_least = 0.95', {"n.accuracy": 1.0})
    assert (claim.verdict, claim.measured) == (REACHED, 0.97)
    (project.root / "data" / "students" / "small.json").write_text("{}")
    with pytest.raises(ValueError, match=r"small\.json: not a record"):
        read_claims("quick")
