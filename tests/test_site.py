"""The site: what `delib site` writes works from any static host, and Python runs in the page without installation."""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import coder
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from delib.cli import app
from delib.data import PYODIDE_FILES, DataUnavailable
from delib.suite.site import CONTEXTS, build_site

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4)).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 2 ** n[2]), min_size=n[1], max_size=n[1]), min_size=n[0], max_size=n[0]),
        st.just(n[2]),
    )
)


def context_of(code: str) -> Any:
    own: dict[str, Any] = {}
    exec(code, own)
    return own["context"]


@pytest.mark.parametrize("name", CONTEXTS)
@given(drawn=GRIDS)
def test_every_grid_comes_back_from_its_bytes(drawn: tuple[coder.Grid, int], name: str) -> None:
    grid, bits = drawn
    context = context_of(CONTEXTS[name])
    assert coder.decode(coder.encode(grid, bits, context), len(grid), len(grid[0]), bits, context) == grid


def test_a_random_mask_costs_its_entropy_and_a_known_one_less() -> None:
    places = [[(37 * r + 11 * c) ** 2 % 101 < 10 for c in range(128)] for r in range(64)]
    known = [[int(hit and r % 2 == 0) for c, hit in enumerate(row)] for r, row in enumerate(places)]
    alone, by_row = (8 * len(coder.encode(known, 0, context_of(CONTEXTS[n]))) for n in ("no context", "its row"))
    share = sum(map(sum, known)) / 8192
    assert alone == pytest.approx(8192 * coder.entropy(share), rel=0.02)
    assert by_row < alone


def test_levels_are_as_many_as_bits_allow_and_closer_with_more() -> None:
    weights = [[math.sin(12.9898 * (i * 16 + j)) for j in range(16)] for i in range(16)]
    errors = []
    for bits in (1, 2, 3, 4):
        grid, levels, error = coder.quantised(weights, 0.5, bits)
        assert len(levels) <= 2**bits and max(map(max, grid)) == len(levels)
        assert sum(level > 0 for row in grid for level in row) == 128
        errors.append(error)
    assert errors == sorted(errors, reverse=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The committed report's site, at an address of this machine."""
    try:
        PYODIDE_FILES.fetch()
    except DataUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("site") / "site"
    assert CliRunner().invoke(app, ["site", str(folder)]).exit_code == 0

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "http:" + f"//127.0.0.1:{server.server_port}"
    server.shutdown()


def value(page: Any, what: str) -> float:
    return float(page.locator(f"#{what}").inner_text().strip("×%").replace(",", ""))


def settled(page: Any) -> None:
    page.get_by_role("status").filter(has_text="Done.").wait_for(timeout=60_000)


def test_python_runs_in_the_page_and_every_slider_moves_the_bytes(site: str, browser: Any) -> None:
    visit = browser.open(f"{site}/try.html")
    page = visit.page
    settled(page)
    assert page.locator("#same").inner_text() == "yes"
    first, bound = value(page, "coded"), value(page, "bound")
    assert first == pytest.approx(bound, rel=0.08), "a count that knows nothing costs about the entropy"
    page.get_by_role("button", name="row and column, roughly").click()
    settled(page)
    assert value(page, "coded") < first
    page.get_by_role("slider", name="Sparsity").press("End")
    settled(page)
    assert page.get_by_role("slider", name="Sparsity").get_attribute("aria-valuetext") == "99%"
    sparse, error = value(page, "coded"), value(page, "error")
    assert sparse < first
    page.get_by_role("slider", name="Bits").press("Home")
    settled(page)
    assert page.get_by_role("slider", name="Bits").get_attribute("aria-valuetext") == "1 bit"
    assert value(page, "coded") < sparse and value(page, "error") > error
    assert visit.requests == visit.complaints == []


def test_what_is_wrong_with_ones_own_code_is_said(site: str, browser: Any) -> None:
    page = browser.open(f"{site}/try.html").page
    settled(page)
    page.get_by_label("Python, yours to change").fill("def context(done, row, column):\n    return rows")
    page.keyboard.press("Control+Enter")
    page.get_by_role("alert").filter(
        has_text=re.compile(r"NameError: name 'rows' is not defined.*\(line 2\)")
    ).wait_for()
    page.get_by_role("button", name="its row").click()
    settled(page)
    assert page.get_by_role("alert").inner_text() == ""


@pytest.mark.parametrize("width", [1280, 390])
def test_whoever_cannot_see_it_can_use_it(site: str, browser: Any, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name in ("try", "docs/teaching", "docs/format"):
        visit = browser.open(f"{site}/{name}.html", width=width)
        found = axe.run(visit.page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == [], name
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert visit.requests == visit.complaints == [], name


def test_every_link_within_it_leads_somewhere(site: str, browser: Any) -> None:
    pages, seen = [f"{site}/index.html"], set()
    while pages:
        page = browser.open(pages.pop()).page
        links = page.locator("a[href]").evaluate_all("links => links.map(link => link.href)")
        for link in {link.split("#")[0] for link in links if link.startswith(site)} - seen:
            seen.add(link)
            answer = page.request.get(link)
            assert answer.ok, f"{page.url} leads to {link}"
            if link.endswith(".html") and "/docs/" in link:
                pages.append(link)
        page.context.close()


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear to me")
    with pytest.raises(ValueError, match="not empty and no earlier site"):
        build_site(tmp_path, "reference", tmp_path, "fc1", [[1]])
    assert (tmp_path / "mine.txt").read_text() == "dear to me"
