"""A run as a document: what it is, what its scores say, what was decided. One file, that opens from a disk without a server.

`facts` computes numbers, `sentences` says which claims they bear, `sections` lays both out, `rendering` writes HTML or Markdown.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracin_core.data.files import write_text
from tracin_core.errors import InputError
from tracin_core.records.report.rendering import as_html, as_markdown
from tracin_core.records.report.sections import document
from tracin_core.records.report.texts import LANGUAGES
from tracin_core.records.runs import Run

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

__all__ = ["LANGUAGES", "file_name", "report_html", "report_markdown", "write_report"]


def report_html(run: Run, language: str = "en", *, place: "Workspace | None" = None) -> str:
    """The run's report as one HTML page that asks nobody for anything: charts, pictures and the code that draws them are in it.

    Args:
        language: en or zh-TW.
        place: the workspace of the run, where its exclusion lists and trainings are looked up; None: the report says they were not.

    Raises:
        ViewError: there is no such language.
    """
    return as_html(document(run, language, place))


def report_markdown(run: Run, language: str = "en", *, place: "Workspace | None" = None) -> str:
    """The same report as Markdown: its sentences and tables, and each chart in words. Arguments and errors as `report_html`."""
    return as_markdown(document(run, language, place))


def file_name(run: Run, ending: str) -> str:
    """What to call the report of a run: its data, its id, and SIMULATED where they are."""
    return f"{'SIMULATED_' if run.simulated else ''}{run.recipe.data.stem}_{run.id}_report{ending}"


FORMATS: Final = {".html": report_html, ".md": report_markdown}


def write_report(run: Run, path: str | Path, *, language: str = "en", place: "Workspace | None" = None) -> Path:
    """The report is in the file, whole; its ending says in which form: .html or .md. Returns the path.

    Raises:
        InputError: another ending, or the file cannot be written.
        ViewError: there is no such language.
    """
    file = Path(path)
    form = FORMATS.get(file.suffix.lower())
    if form is None:
        raise InputError(
            f"A report is written as {' or '.join(FORMATS)}, not as '{file.name}'; give the file one of these endings."
        )
    text = form(run, language, place=place)
    try:
        write_text(file, text)
    except OSError as failure:
        raise InputError(
            f"The report '{file}' cannot be written ({failure.strerror}); choose a folder that you may write to."
        ) from failure
    return file
