"""Several things to choose at once, such as a layer, a criterion, a sparsity and bits, and the picture of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from delib.suite.explorer import Explorer, Frame, live_picture, live_title, show_live

Drawn = tuple[Any, str]  # a matplotlib figure or a PNG, and what is seen on it


class Choices:
    """A picture that is drawn anew for every choice.

    ``options`` maps each quantity to its stops: anything, under the label that is shown for it; the stop shown first
    comes first. Words become a list to choose from, the rest a slider. ``draw`` makes picture and caption of one stop
    of each, in their order. Live, everything can be chosen, and ``draw`` is called at each choice; a page without a
    kernel has a slider over the last quantity, with the others at their first stops. Raises ValueError where nothing
    can be chosen.
    """

    def __init__(self, title: str, options: Mapping[str, Mapping[str, Any]], draw: Callable[..., Drawn]) -> None:
        if not options or not all(options.values()):
            raise ValueError("choices need a quantity, and each quantity at least one stop")
        self.title, self.options, self.draw = title, options, draw

    def frame(self, *labels: str) -> Frame:
        """The picture of one choice, by the labels of its stops."""
        stops = [stops[label] for stops, label in zip(self.options.values(), labels, strict=True)]
        picture, caption = self.draw(*stops)
        return Frame(labels[-1], picture, f"{self.title}, {', '.join(labels)}: {caption}", caption)

    def explorer(self) -> Explorer:
        """A slider over the last quantity, for pages without a kernel; the others are named in its title."""
        *others, (quantity, stops) = self.options.items()
        first = [next(iter(held)) for _, held in others]
        return Explorer([self.frame(*first, label) for label in stops], ", ".join([self.title, *first]), quantity)

    def widget(self) -> Any:
        """The live version: lists and sliders of ipywidgets above the picture."""
        import ipywidgets

        picture = live_picture("")
        chosen = [self._choice(name, list(stops.items())) for name, stops in self.options.items()]

        def drawn(*_: Any) -> None:
            picture.value = self.frame(*(choice.label for choice in chosen)).live

        for choice in chosen:
            choice.observe(drawn, "label")
        drawn()
        return ipywidgets.VBox([live_title(self.title), *chosen, picture]).add_class("delib-live")

    @staticmethod
    def _choice(name: str, stops: list[tuple[str, Any]]) -> Any:
        import ipywidgets

        kind = ipywidgets.Dropdown if all(isinstance(stop, str) for _, stop in stops) else ipywidgets.SelectionSlider
        labels = [label for label, _ in stops]
        return kind(options=labels, description=name, continuous_update=False, layout={"width": "32rem"})

    def show(self) -> None:
        """Display what works here: the widgets in a live notebook, a slider in a batch run (DELIB_BATCH=1)."""
        show_live(self.explorer, self.widget)
