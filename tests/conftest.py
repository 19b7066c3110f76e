"""What several test files share: a project of small notebooks, and a real browser with the network cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_BROWSER = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
PARAMETERS = 'profile = "quick"  # which set of values\nseed = 0  # of chance'

# An example takes as long as the machine's other work leaves it: how long is not what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# Networks here are so small that a second thread costs more than it gains, the more so beside another process of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; kernels and child processes take it over


@dataclass
class Project:
    """A project folder of its own, as ``$DELIB_HOME`` names it to delib and to the kernels."""

    root: Path

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def notebook(self, name: str, *cells: str, parameters: str = PARAMETERS, title: str = "Toy") -> Path:
        """Write a notebook: a title, the parameters cell, and ``cells``: code, or Markdown where they begin with #+."""
        book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        book.cells = [
            nbformat.v4.new_markdown_cell(f"# {title}\n\nWhat will be seen."),
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        ]
        for cell in cells:
            make = nbformat.v4.new_markdown_cell if cell.startswith("#+") else nbformat.v4.new_code_cell
            book.cells.append(make(cell.removeprefix("#+").lstrip()))
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, path)
        return path

    def profiles(self, text: str) -> None:
        """Write ``profiles.toml``."""
        (self.root / "notebooks" / "profiles.toml").write_text(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("DELIB_HOME", str(tmp_path))
    return Project(tmp_path)


@dataclass
class Visit:
    """A page that the browser opened, what it tried to load from elsewhere, and what it complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def images_without_alt(self) -> int:
        """How many images say nothing to those who do not see them."""
        count: int = self.page.locator("img").evaluate_all("images => images.filter(i => !i.alt.trim()).length")
        return count

    def broken_images(self) -> int:
        """How many images the browser could not show."""
        script = "images => Promise.all(images.map(i => i.decode().then(() => 0, () => 1))).then(a => a.filter(x => x))"
        return len(self.page.locator("img").evaluate_all(script))


class Browser:
    """A headless browser that opens files, or one origin that a test serves; what would go elsewhere is recorded and
    refused."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, path: Path | str, *, width: int = 1280, scripts: bool = True) -> Visit:
        address = path if isinstance(path, str) else path.resolve().as_uri()
        origin = "/".join(address.split("/")[:3]) + "/"
        context = self._driver.new_context(viewport={"width": width, "height": 900}, java_script_enabled=scripts)
        context.set_offline(isinstance(path, Path))
        visit = Visit(context.new_page())
        context.route("**/*", lambda route: self._answer(route, visit, origin))
        visit.page.on("console", lambda m: visit.complaints.append(m.text) if m.type in ("error", "warning") else None)
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.goto(address)
        return visit

    @staticmethod
    def _answer(route: Any, visit: Visit, origin: str) -> None:
        if route.request.url.startswith((origin, "data:")):
            route.continue_()
        else:
            visit.requests.append(route.request.url)
            route.abort()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Module-wide, not session-wide: while it is open, no other event loop runs, so no notebook is executed."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None) or (
        str(MAC_BROWSER) if MAC_BROWSER.exists() else None
    )
    if found is None:
        pytest.skip(f"no browser to look at pages with; install one of {', '.join(BROWSERS[:3])}")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        driver = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield Browser(driver)
        driver.close()
