"""The report: executed notebooks and records as offline HTML, an index and one page a notebook."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from delib.files import project_root, write_bytes
from delib.suite import claims, overview, runner
from delib.suite.explorer import template
from delib.suite.layout import papers
from delib.suite.pages import Page, read_page
from delib.suite.parameters import PROFILES
from delib.suite.progress import duration
from delib.suite.record import read_records, report_folder
from delib.suite.slides import deck, read_notes, reveal


def compile_report(run: str | Path = "quick", *, slides: bool = False) -> Path:
    """Write ``index.html`` and a page for each executed notebook of ``reports/<run>``; returns the index's path.

    With ``slides`` also ``<name>.slides.html`` of each.

    Executes nothing. Raises ValueError if no notebook was run, if a result is not as the runner left it, or if a page
    would load anything from elsewhere.
    """
    folder = report_folder(run)
    executed = [path for path in sorted((folder / "notebooks").glob("[0-9]*.ipynb")) if ".failed" not in path.name]
    if not executed:
        raise ValueError(f"{folder} holds no executed notebook; make it with `delib report --profile {folder.name}`")
    runner.check_results(run)
    pages, records = [read_page(path) for path in executed], read_records(run)
    for path in folder.glob("[0-9]*.html"):  # of notebooks that are no longer part of the run
        if path.stem not in {page.name for page in pages}:
            path.unlink()
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None]):
        facts = {"page": page, "record": records.get(page.name, {}), "before": before, "after": after}
        _write(folder, page.name, "notebook", facts)
    if slides:
        (style, script), claimed = reveal(), claims.read_claims(run)
        notes = read_notes(project_root() / "docs" / "teaching.md")
        for page in pages:
            shown = {"deck": deck(page, notes.get(page.name)), "claims": _last_claims(claimed, page.name)}
            facts = {"page": page, "style": style, "script": script, **shown}
            _write(folder, f"{page.name}.slides", "slides", facts)
    return _write(folder, "index", "index", {"records": records, "slides": slides, **_summary(run, pages, records)})


def _last_claims(claimed: list[claims.Claim], name: str) -> list[claims.Claim]:
    """What a talk ends with: of the claims that a notebook measured its headlines and what was not reached."""
    measured = [claim for claim in claimed if claim.metric.startswith(f"{name}:") and claim.shown]
    return [claim for claim in measured if claim.headline or claim.verdict == claims.NOT_REACHED] or measured


def _write(folder: Path, name: str, template_name: str, facts: dict[str, Any]) -> Path:
    path = folder / f"{name}.html"
    html = template(f"{template_name}.html.j2").render(run=folder.name, duration=duration, **facts)
    write_bytes(path, html.encode())
    return path


def _summary(run: str | Path, pages: list[Page], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the index says of all notebooks: the claims by who makes them, their verdicts, what records share."""
    claimed, students = claims.read_claims(run), claims.student_records()
    verdicts = Counter(claim.verdict for claim in claimed)
    return {
        "hero": overview.hero(pages),
        "cards": overview.cards(pages),
        "numbers": overview.numbers(students),
        "students": students,
        "headlines": [claim for claim in claimed if claim.headline],
        "groups": {name: [c for c in claimed if c.source == source] for source, name in claims.SOURCES.items()},
        "counts": {verdict: verdicts[verdict] for verdict in (claims.REACHED, claims.NOT_REACHED, claims.NOT_MEASURED)},
        "evidence": overview.evidence(claimed, pages),
        "papers": papers(),
        "common": common(records),
    }


def publish_reference(run: str = "quick") -> Path:
    """Copy a profile's report, its pages and records, to ``reports/reference``, and its numbers into README's table.

    Returns the reference's index. Raises ValueError if a result is not what that profile makes of the notebooks now.
    """
    if run not in PROFILES:
        raise ValueError(f"`{run}` is no profile; only the report of a profile becomes the reference")
    # Compiled anew, so that pages and records are of the same runs.
    source, target = compile_report(run).parent, report_folder("reference")
    runner.check_results(run, current=True)
    shutil.rmtree(target, ignore_errors=True)
    for path in [*source.glob("*.html"), *source.glob("records/*.json")]:
        write_bytes(target / path.relative_to(source), path.read_bytes())
    claims.update_readme()
    return target / "index.html"


def common(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The circumstances that all records share; ``differs`` stands where they do not."""
    keys = ("seed", "machine", "device", "threads", "git_revision", "versions")
    found = {key: [record[key] for record in records.values() if key in record] for key in keys}
    return {
        key: values[0] if all(value == values[0] for value in values) else "differs, see the pages"
        for key, values in found.items()
        if values
    }
