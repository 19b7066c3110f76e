"""JupyterLab itself: a notebook opened from its file browser, run, moved by mouse and keys, interrupted, continued."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from house import ROOT

pytest.importorskip("jupyterlab")
LONG = "print('began')\nimport time\ntime.sleep(600)"
SHADES = """from delib.suite import explore, figures
import numpy as np

def drawn(shade):
    return figures.maps({"plane": np.full((8, 8), shade)}, "shade")

explore("Shades", {"0%": 1.0, "50%": 2.0, "100%": 3.0}, drawn, lambda s: f"shade {s}").show()"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a folder with one notebook."""
    root = tmp_path_factory.mktemp("lab")
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    cells = ("before = 40", SHADES, LONG, "print(before + 2)")
    book.cells = [nbformat.v4.new_markdown_cell("# A plane"), *map(nbformat.v4.new_code_cell, cells)]
    (root / "notebooks").mkdir()
    nbformat.write(book, root / "notebooks" / "shades.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--ServerApp.ip=127.0.0.1"]
    command += [
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={root}",
        "--allow-root",
        "--LabApp.collaborative=False",
    ]
    folders = {f"JUPYTER_{kind}_DIR": str(root / kind) for kind in ("CONFIG", "RUNTIME", "DATA")}
    environment = {**os.environ, **folders, "DELIB_HOME": str(ROOT), "DELIB_BATCH": "", "HOME": str(root)}
    server = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _address(root / "RUNTIME", server)
    finally:
        server.terminate()
        server.wait(30)


def _address(runtime: Path, server: subprocess.Popen[bytes]) -> str:
    for _ in range(240):
        for file in runtime.glob("jpserver-*.json"):
            return str(json.loads(file.read_text())["url"])
        assert server.poll() is None, "it did not start"
        time.sleep(0.5)
    pytest.fail("it took more than two minutes")


def test_a_notebook_runs_is_moved_interrupted_and_gone_on_with(lab: str, browser: Any) -> None:
    page = browser.open(f"{lab}lab").page
    page.set_default_timeout(90_000)
    page.get_by_role("listitem", name=re.compile("Name: notebooks")).dblclick()
    page.get_by_role("listitem", name=re.compile("Name: shades.ipynb")).dblclick()
    page.get_by_text(re.compile(r"\| Idle")).wait_for()  # run earlier, it asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    slider = page.get_by_role("slider", name="Sparsity")
    slider.wait_for()
    page.locator(".jp-OutputArea-output", has_text="began").wait_for()
    picture = page.get_by_alt_text("Shades, 0%: shade 1.0")
    picture.wait_for()
    wide = picture.evaluate("it => it.getBoundingClientRect().width / getComputedStyle(it).getPropertyValue('--width')")
    assert 0.2 < wide <= 1.001, "as wide as it is to be, not as wide as its file has pixels"
    _told(slider, "0%")

    slider.press("ArrowRight")  # while the kernel is busy
    _told(slider, "50%")
    page.get_by_alt_text("Shades, 50%: shade 2.0").wait_for()
    track = page.locator(".delib-live .noUi-target").bounding_box()
    page.mouse.click(track["x"] + track["width"] - 2, track["y"] + track["height"] / 2)
    page.get_by_alt_text("Shades, 100%: shade 3.0").wait_for()
    _told(slider, "100%")

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Interrupt Kernel")).click()
    page.locator(".jp-OutputArea-output", has_text="KeyboardInterrupt").first.wait_for()
    page.locator(".jp-CodeCell").last.click()
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output", has_text="42").wait_for()


def _told(slider: Any, words: str) -> None:
    """Wait until a screen reader is told these words."""
    for _ in range(100):
        if slider.get_attribute("aria-valuetext") == words:
            return
        time.sleep(0.1)
    assert slider.get_attribute("aria-valuetext") == words
