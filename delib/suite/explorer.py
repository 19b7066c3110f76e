"""The sparsity explorer: one set of pictures made beforehand, moved through by a slider, live or offline."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_numbers = itertools.count(1)
STYLE = """<style>
.delib-explorer{max-width:60rem;margin:1em 0;padding:0}
.delib-explorer h4{margin:0 0 .5em;font-size:1em}
.delib-explorer figure{margin:0}
.delib-explorer img{display:block;max-width:100%;height:auto;margin:0 auto;background:#fff}
.delib-explorer figcaption{margin:.6em 0;text-align:center}
.delib-explorer .bar{display:flex;gap:1em;align-items:center;flex-wrap:wrap}
.delib-explorer input{flex:1 1 12rem;min-width:8rem;height:2rem;accent-color:#0072b2;cursor:pointer}
.delib-explorer output{min-width:5em;text-align:right;font-weight:600;font-variant-numeric:tabular-nums}
</style>"""
SCRIPT = """<script>(() => {
const root = document.getElementById("%s"), slider = root.querySelector("input");
const frames = root.querySelectorAll("figure"), shown = root.querySelector("output");
const move = () => frames.forEach((frame, i) => {
  frame.hidden = i !== +slider.value;
  if (!frame.hidden) {
    shown.textContent = frame.dataset.label;
    slider.setAttribute("aria-valuetext", frame.dataset.label);
  }
});
slider.addEventListener("input", move);
move();
})()</script>"""


@dataclass(frozen=True)
class Frame:
    """One position of the slider: its label, a PNG, what the PNG shows in words, and a caption below it.

    ``density`` stored pixels make a shown one: 2 is sharp on high-density screens, as ``figures.png`` makes it.
    """

    label: str
    image: bytes
    alt: str
    caption: str = ""
    density: int = 2


class Explorer:
    """A slider over frames. ``quantity`` names what the slider moves, ``start`` is the first frame shown.

    Nothing is computed when it moves, so the same frames serve the live notebook (``widget``) and a page without a
    kernel or a network (``_repr_html_``). Raises ValueError if there are no frames, if one lacks its alt or is no
    PNG, or if ``start`` is none of them.
    """

    def __init__(self, frames: Sequence[Frame], title: str, quantity: str = "Sparsity", start: int = 0) -> None:
        if not frames:
            raise ValueError("an explorer needs at least one frame")
        if silent := [frame.label for frame in frames if not frame.alt.strip()]:
            raise ValueError(f"frame {silent[0]!r} has no alt: say in words what its picture shows")
        if foreign := [frame.label for frame in frames if not frame.image.startswith(b"\x89PNG")]:
            raise ValueError(f"the image of frame {foreign[0]!r} is no PNG; make it with figures.png")
        if not 0 <= start < len(frames):
            raise ValueError(f"start {start} is none of the {len(frames)} frames")
        self.frames, self.title, self.quantity, self.start = tuple(frames), title, quantity, start

    def _repr_html_(self) -> str:
        """Plain HTML: a native range input, every picture inlined, and a few lines of script that belong to it."""
        name = f"explorer-{next(_numbers)}"
        figures = "".join(_figure(frame, hidden=i != self.start) for i, frame in enumerate(self.frames))
        label = escape(self.frames[self.start].label)
        return (
            f'{STYLE}<section class="delib-explorer" id="{name}" aria-label="{escape(self.title)}">'
            f"<h4>{escape(self.title)}</h4>{figures}"
            f'<div class="bar"><label for="{name}-slider">{escape(self.quantity)}</label>'
            f'<input type="range" id="{name}-slider" min="0" max="{len(self.frames) - 1}" step="1" '
            f'value="{self.start}" aria-valuetext="{label}" autocomplete="off">'
            f'<output for="{name}-slider">{label}</output></div>'
            f"<noscript><style>#{name} figure{{display:block}}</style></noscript></section>{SCRIPT % name}"
        )

    def widget(self) -> Any:
        """The live version: an ipywidgets slider over the same frames."""
        import ipywidgets

        options = [(frame.label, i) for i, frame in enumerate(self.frames)]
        slider = ipywidgets.SelectionSlider(
            options=options, value=self.start, description=self.quantity, layout={"width": "32rem"}
        )
        # An HTML widget rather than an Image one: only it can carry the alt.
        picture = ipywidgets.HTML(_figure(self.frames[self.start]))
        slider.observe(lambda change: picture.set_trait("value", _figure(self.frames[change["new"]])), "value")
        return ipywidgets.VBox([ipywidgets.HTML(f"<b>{escape(self.title)}</b>"), picture, slider])

    def show(self) -> None:
        """Display what works here: the widget in a live notebook, the plain HTML in a batch run (DELIB_BATCH=1)."""
        from IPython.display import HTML, display

        display(HTML(self._repr_html_()) if os.environ.get("DELIB_BATCH") == "1" else self.widget())


def _figure(frame: Frame, hidden: bool = False) -> str:
    source = base64.b64encode(frame.image).decode()
    width = int.from_bytes(frame.image[16:20], "big") // frame.density  # of the PNG's header
    return (
        f'<figure data-label="{escape(frame.label)}"{" hidden" if hidden else ""}>'
        f'<img alt="{escape(frame.alt)}" width="{width}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escape(frame.caption)}</figcaption></figure>"
    )
