"""Methods compared under the same settings: one table of what was measured of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from delib.files import clock

if TYPE_CHECKING:
    import pandas as pd


class Sweep:
    """Every method that is added makes a result in each of ``settings``, which ``judge`` measures.

    Settings are keyword arguments of the methods and, behind the result, of ``judge``, which returns numbers by name.
    Two of them, ``sparsity`` and ``seed``, are kept with the numbers.
    """

    def __init__(self, settings: Sequence[Mapping[str, Any]], judge: Callable[..., Mapping[str, float]]) -> None:
        self.settings, self.judge = settings, judge
        self.rows: list[dict[str, Any]] = []
        self._results: dict[tuple[str, float, int], Any] = {}

    def add(self, method: str, make: Callable[..., Any], after: str = "") -> None:
        """Make and judge the results of ``method``, and measure the seconds of the making.

        With ``after``, the name of a method added before, ``make`` also gets ``student``, a copy of that one's result.
        """
        for given in self.settings:
            place = (given["sparsity"], given["seed"])
            more = {"student": copy.deepcopy(self._results[after, *place])} if after else {}
            start = clock()
            result = make(**given, **more)
            seconds = clock() - start
            key = dict(zip(("method", "sparsity", "seed"), (method, *place), strict=True))
            self.rows.append({**key, **self.judge(result, **given), "seconds": seconds})
            self._results[method, *place] = result

    def table(self, *methods: str) -> pd.DataFrame:
        """Mean and standard deviation over seeds of every number, by sparsity and method; of all methods if none."""
        import pandas as pd  # not with delib.suite: the command line needs to be quick

        rows = pd.DataFrame([row for row in self.rows if not methods or row["method"] in methods])
        measured = [name for name in rows if name not in ("method", "sparsity", "seed", "seconds")]
        spread = {name: ["mean", "std"] for name in measured} | {"seconds": ["mean"]}
        return rows.groupby(["sparsity", "method"]).agg(spread)

    def shown(self, *methods: str) -> pd.DataFrame:
        """``table`` as it is to be read: mean ± standard deviation, accuracies and sparsities in percent."""
        table = self.table(*methods)
        shown = table[["seconds"]].map("{:.1f}".format).droplevel(1, axis=1)
        for place, name in enumerate(table.columns.unique(0).drop("seconds")):
            form = "{:.2%}~±~{:.2%}" if "accuracy" in name else "{:.4f}~±~{:.4f}"
            form = form.replace("~", "\N{NO-BREAK SPACE}")
            values = table[name].fillna(0.0).itertuples(index=False)  # one seed has no deviation
            shown.insert(place, name, [form.format(*pair) for pair in values])
        return shown.rename("{:.0%}".format, level="sparsity")
