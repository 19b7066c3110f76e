"""A sweep makes every method's results under the same settings and keeps what was measured of each."""

from __future__ import annotations

import pytest

from delib.suite import Sweep

SETTINGS = [{"sparsity": s, "seed": k, "offset": 10 * k} for s in (0.5, 0.9) for k in (0, 1)]


def test_methods_are_judged_in_every_setting_and_averaged_over_seeds() -> None:
    sweep = Sweep(SETTINGS, lambda result, offset, **_: {"value": result[0], "offset": offset})
    sweep.add("plain", lambda sparsity, seed, offset: [sparsity + seed])
    sweep.add("tenfold", lambda student, **_: [10 * student.pop()], after="plain")
    table = sweep.table()
    assert list(table.index) == [(s, method) for s in (0.5, 0.9) for method in ("plain", "tenfold")]
    assert table["value", "mean"].tolist() == pytest.approx([1.0, 10.0, 1.4, 14.0])
    assert table["value", "std"].iloc[0] == pytest.approx(0.5**0.5)
    assert table["offset", "mean"].tolist() == [5.0] * 4
    assert (table["seconds", "mean"] >= 0).all()
    sweep.add("again", lambda student, **_: student, after="plain")
    assert sweep.table("again")["value", "mean"].tolist() == pytest.approx([1.0, 1.4]), "a copy was changed before"


def test_what_is_shown_has_the_spread_beside_the_mean() -> None:
    sweep = Sweep(SETTINGS[:2], lambda result, **_: {"divergence": 0.1, "test_accuracy": result})
    sweep.add("plain", lambda seed, **_: 0.9 + 0.02 * seed)
    shown = sweep.shown("plain")
    assert list(shown) == ["divergence", "test_accuracy", "seconds"]
    assert shown.loc["50%", "plain"].tolist()[:2] == ["0.1000\xa0±\xa00.0000", "91.00%\xa0±\xa01.41%"]
    alone = Sweep(SETTINGS[:1], lambda result, **_: {"accuracy": result})
    alone.add("plain", lambda **_: 0.9)
    assert alone.shown().loc["50%", "plain"]["accuracy"] == "90.00%\xa0±\xa00.00%", "of one seed"
