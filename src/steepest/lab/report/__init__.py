"""The report of a study: one HTML page that opens offline, static figures, and its tables as Markdown, LaTeX and CSV.

Everything is derived from the files of the study (see `lab.results`), at any moment: a study that is still running
gives a report of what is there. The page holds its script, style and data, and its content security policy forbids a
browser to load anything else or to run any other script.

::

    page.py         write
    measures.py     what is found beyond the headline: costs, targets, tuning, variants, diagnostics
    sheets.py       a table in its four forms
    tables.py       the tables of a study; figure_data.py those of its figures; beside.py published numbers
    imported.py     the curves and numbers of imported runs beside ours
    content.py      the text of the page
    interactive/    figures for plotly.js
    static/         figures by matplotlib
    templates/      HTML, style, script
"""

from steepest.lab.report.page import write
from steepest.lab.report.tables import terminal_table
from steepest.lab.results import Study, headline, read_study
from steepest.lab.wording import verdict

__all__ = ["Study", "headline", "read_study", "terminal_table", "verdict", "write"]
