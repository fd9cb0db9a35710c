"""Puts a report together and writes it."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import jinja2

from ppfed.atomic import write_atomic
from ppfed.model_folder import NOTICE
from scenarios.declaration import Scale
from scenarios.report import frontier, leakage, speed, tables
from scenarios.report.drawings import bars, panels, speed_panels
from scenarios.report.outcome import Outcome
from scenarios.report.pictures import LARGEST_SIDE, cipher_pictures
from scenarios.report.sides import Sides
from scenarios.report.verdict import SMOKE, control_pairs, neighbours, published_neighbours, verdict

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
COMPARISON_HTML_FILE, COMPARISON_MARKDOWN_FILE = "comparison.html", "comparison.md"

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$!&])")
_STARTS_BLOCK = re.compile(r"^([-+=:]|\d+[.)])(?=\s|[-+=:]|$)")


class _Plain(str):
    """Text that is Markdown already."""

    __slots__ = ()


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write the report of a run into its folder: ``report.html`` and ``report.md``.

    Parameters
    ----------
    folder : Path
        Of a run, finished or not.

    Returns
    -------
    tuple of Path
        The HTML page, which needs no other file, and its Markdown twin, which has no pictures. Where attacks left
        pictures, the page shows images of the data. Only this user may read the files.

    Raises
    ------
    UsageError
        If ``folder`` is not the folder of a run.
    DataError
        If its files are damaged.
    """
    outcome = Outcome.read(folder)
    smoke = outcome.record.scale is Scale.SMOKE
    groups = [
        tables.pairs(outcome, "Neighbours in the order of accuracy", "First", neighbours(outcome)),
        tables.pairs(outcome, "Neighbours in the published order", "Published higher", published_neighbours(outcome)),
        tables.pairs(outcome, "Each arm and its plain control", "Plain control", control_pairs(outcome)),
    ]
    content = {
        "scenario": outcome.scenario,
        "smoke": SMOKE if smoke else "",
        "notice": NOTICE,
        "verdict": verdict(outcome),
        "settings": tables.settings(outcome),
        "accuracies": tables.accuracies(outcome),
        # At scale smoke a finding would be a claim that the numbers do not bear.
        "pairs": [] if smoke else [table for table in groups if table.rows],
        "how": [] if smoke else tables.how_compared(outcome, sum(len(table.rows) for table in groups)),
        "frontier_tables": frontier.tables(outcome),
        "speed": speed.table(outcome),
        "attacks": leakage.attacks_table(outcome),
        "cards": leakage.cards(outcome, folder),
        "further": [table for table in (tables.queries(outcome), tables.owners(outcome)) if table is not None],
        "missing": tables.missing(outcome),
    }
    drawn = {
        "bars": bars(outcome),
        "frontiers": frontier.frontiers(outcome),
        "panels": panels(outcome),
        "speed_panels": speed_panels(outcome),
        "ciphers": cipher_pictures(outcome.scenario, outcome.record.scale),
        "largest_side": LARGEST_SIDE,
    }
    paths = folder / HTML_FILE, folder / MARKDOWN_FILE
    write_atomic(paths[0], _html("report.html.j2", content | drawn))
    write_atomic(paths[1], _markdown("report.md.j2", content))
    return paths


def compare(first: Path, second: Path, out: Path) -> tuple[Path, Path]:
    """Set two runs side by side: ``comparison.html`` and ``comparison.md``.

    Parameters
    ----------
    first, second : Path
        Folders of runs, of the same scenario or not.
    out : Path
        Folder to write to; made if it is missing.

    Returns
    -------
    tuple of Path
        The HTML page and its Markdown twin.

    Raises
    ------
    UsageError
        If one is not the folder of a run.
    DataError
        If their files are damaged.
    """
    sides = Sides(Outcome.read(first), Outcome.read(second))
    content: dict[str, object] = {
        "title": sides.title,
        "smoke": SMOKE if sides.is_smoke else "",
        "notice": NOTICE,
        "verdict": sides.verdict(),
        "tables": sides.tables(),
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = out / COMPARISON_HTML_FILE, out / COMPARISON_MARKDOWN_FILE
    write_atomic(paths[0], _html("comparison.html.j2", content))
    write_atomic(paths[1], _markdown("comparison.md.j2", content))
    return paths


def _html(template: str, content: dict[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template(template).render(content)


def _markdown(template: str, content: dict[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        # Not HTML: every value is escaped for Markdown on its way out instead.
        autoescape=False,  # noqa: S701
        finalize=_escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template(template).render(content)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _escaped(value: object) -> str:
    """Escape text for Markdown, on one line: names come from files."""
    if isinstance(value, _Plain):
        return value
    text = _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))
    return _STARTS_BLOCK.sub(r"\\\1", text)


def _code(value: object) -> _Plain:
    """Show text as code; a run of backticks in it cannot end it."""
    text = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return _Plain(f"{fence} {text} {fence}" if "`" in text else f"`{text}`")
