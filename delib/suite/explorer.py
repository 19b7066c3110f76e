"""The sparsity explorer: one set of pictures made beforehand, moved through by a slider, live or offline."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Frame:
    """One position of the slider: its label, a picture, what the picture shows in words, and a caption below it.

    A matplotlib figure becomes a PNG. ``density`` stored pixels make a shown one: 2 is sharp on high-density screens,
    as ``figures.png`` makes it.
    """

    label: str
    image: Any
    alt: str
    caption: str = ""
    density: int = 2

    def __post_init__(self) -> None:
        if hasattr(self.image, "savefig"):
            from delib.suite.figures import png

            object.__setattr__(self, "image", png(self.image))

    @property
    def width(self) -> int:
        """Its width in a browser's pixels, from the PNG's header."""
        return int.from_bytes(self.image[16:20], "big") // self.density

    @property
    def source(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.image).decode()}"

    @property
    def live(self) -> str:
        """Picture and caption as HTML for a widget."""
        return str(template("frame.html.j2").module.figure(self, False))


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
        return str(template("explorer.html.j2").render(name=f"explorer-{next(_numbers)}", **vars(self)))

    def widget(self) -> Any:
        """The live version: an ipywidgets slider over the same frames, and a button that plays them.

        They are linked in the browser: the slider moves while the kernel is busy too.
        """
        import ipywidgets

        options = [(frame.label, i) for i, frame in enumerate(self.frames)]
        slider = ipywidgets.SelectionSlider(
            options=options, value=self.start, description=self.quantity, layout={"width": "32rem"}
        )
        play = ipywidgets.Play(min=0, max=len(self.frames) - 1, value=self.start, interval=900, show_repeat=False)
        pictures = ipywidgets.Stack([live_picture(frame.live) for frame in self.frames], selected_index=self.start)
        ipywidgets.jslink((play, "value"), (slider, "index"))
        ipywidgets.jslink((slider, "index"), (pictures, "selected_index"))
        parts = [live_title(self.title), pictures, ipywidgets.HBox([play, slider])]
        return ipywidgets.VBox(parts).add_class("delib-live")

    def show(self) -> None:
        """Display what works here: the widget in a live notebook, the plain HTML in a batch run (DELIB_BATCH=1)."""
        show_live(lambda: self, self.widget)


def live_title(title: str) -> Any:
    """A widget that shows a title."""
    return live_picture(str(template("frame.html.j2").module.heading(title)))


def live_picture(html: str) -> Any:
    """A widget that shows a frame's HTML; an Image could not carry the alt."""
    import ipywidgets

    return ipywidgets.HTML(html)


def show_live(page: Callable[[], Explorer], widget: Callable[[], Any]) -> None:
    """Display a widget in a live notebook, with the style that gives its pictures their size and the script by which
    its sliders say their values aloud; in a batch run (DELIB_BATCH=1) the HTML of ``page``."""
    from IPython.display import HTML, display

    if os.environ.get("DELIB_BATCH") == "1":
        display(HTML(page()._repr_html_()))
        return
    style, script = (template(name).render() for name in ("live.css", "live.js"))
    display(HTML(f"<style>{style}</style><script>{script}</script>"))
    display(widget())


def explore(
    title: str,
    stops: Mapping[str, Any],
    draw: Callable[[Any], Any],
    caption: Callable[[Any], str],
    *,
    quantity: str = "Sparsity",
    start: int = 0,
) -> Explorer:
    """An explorer over ``stops``: anything, such as a student, under the label that the slider shows for it.

    ``draw`` makes the figure, or the PNG, of a stop. ``caption`` says what is seen on it, below it and in its alt.
    """
    frames = [
        Frame(label, draw(stop), f"{title}, {label}: {caption(stop)}", caption(stop)) for label, stop in stops.items()
    ]
    return Explorer(frames, title, quantity, start)


def template(name: str) -> Any:
    """A template of ``templates/``, which escapes what it is given and refuses what it is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    return Environment(loader=PackageLoader("delib.suite"), **options).get_template(name)
