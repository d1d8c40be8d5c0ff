"""Write the page of a study, its figures and its tables."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steepest._version import __version__
from steepest.lab.errors import full_disk
from steepest.lab.report.beside import Beside, published
from steepest.lab.report.content import content
from steepest.lab.report.figure_data import figure_sheets
from steepest.lab.report.imported import as_published, chart, draw, read_imported
from steepest.lab.report.imported import sheet as curves_sheet
from steepest.lab.report.interactive import charts
from steepest.lab.report.interactive.parts import Spec
from steepest.lab.report.measures import Findings
from steepest.lab.report.sheets import Sheet
from steepest.lab.report.static import save, write_figures
from steepest.lab.report.tables import sheets
from steepest.lab.results import headline, read_study
from steepest.lab.series import PALETTE, ROLE_PALETTE

_TEMPLATES = Path(__file__).parent / "templates"
# Low to high loss in a heat map, then the ink on its pale and on its deep cells; the same on light and dark pages.
_HEAT = ("#e6eef9", "#7fa8d9", "#234f8e", "#16202c", "#ffffff")


def write(
    study_dir: str | Path, out: str | Path | None = None, figures: bool = True, imported: Sequence[str | Path] = ()
) -> Path:
    """Write the report of a study or a single run.

    Writes `report.html`, `figures/*.svg|pdf` and `tables/*.md|tex|csv` into the folder of the study, over those of an
    earlier report.

    Args:
        study_dir: What `read_study` takes.
        out: Where to write the page instead: a file, or a folder. Figures and tables stay in the study.
        figures: Write the static figures, too, which take most of the time of a report.
        imported: Studies of imported runs (`steepest import`), to be shown beside this one.

    Returns:
        The path of the page.

    Raises:
        UserError: There is no study at `study_dir`, one of `imported` is not of imported runs, or the disk is full.
    """
    study = read_study(study_dir)
    f = Findings(study, headline(study))
    page = Path(out) if out is not None else study.path / "report.html"
    page = page / "report.html" if page.is_dir() else page
    others = [read_imported(folder) for folder in imported]
    beside, tables = published(f, [as_published(other) for other in others]), sheets(f)
    try:
        if figures:
            write_figures(f, study.path / "figures")
            if others:
                save({"imported": partial(draw, f, others)}, study.path / "figures")
        write_tables([*tables.values(), *(b.sheet for b in beside if b.sheet.body)], study.path / "tables")
        write_text(page, study_page(f, tables, beside, others))
    except OSError as error:
        raise full_disk(error, page, "writing the report") or error from None
    return page


def write_tables(found: Sequence[Sheet], folder: Path) -> None:
    """Write each table as Markdown, LaTeX and CSV."""
    for sheet in found:
        for ending, text in (("md", sheet.markdown()), ("tex", sheet.latex()), ("csv", sheet.csv())):
            write_text(folder / f"{sheet.name}.{ending}", text)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def study_page(
    f: Findings, tables: Mapping[str, Sheet], beside: Sequence[Beside], others: Sequence[Findings] = ()
) -> str:
    """The page of a study as HTML."""
    specs, data = charts(f), figure_sheets(f)
    spec, sheet = (chart(f, others), curves_sheet(f, others)) if others else (None, None)
    if spec and sheet:
        specs, data = {**specs, "imported": spec}, {**data, "imported": sheet}
    f.study.problems.extend(f"{other.study.name}: {problem}" for other in others for problem in other.study.problems)
    # Last, when every file that a figure or table needs has been read: reading them finds what is damaged.
    return render("study.html.j2", specs, {**content(f), "sheets": tables, "data": data, "beside": beside})


def render(template: str, specs: Mapping[str, Spec], values: Mapping[str, Any]) -> str:
    """Fill in a template: one file that holds its script, style and data.

    Its content security policy forbids a browser to load anything else or to run any other script.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False, "separators": (",", ":")}
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (plotly, script)]
    policy = [
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return environment.get_template(template).render(
        **values,
        charts=specs,
        policy="; ".join(policy),
        plotly=Markup(plotly),
        script=Markup(script),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        palette=PALETTE,
        role_palette=ROLE_PALETTE,
        heat=_HEAT,
        version=__version__,
    )
