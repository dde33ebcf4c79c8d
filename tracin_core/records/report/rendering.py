"""A document as HTML or Markdown. Every text from the data is escaped here, and nowhere else."""

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tracin_core.records.report.blocks import Case, Chart, Code, Document, Pictures, Section, Table, Text

__all__ = ["as_html", "as_markdown"]

SYSTEM_FONT: Final = "system-ui, 'Segoe UI', 'Noto Sans TC', 'Noto Sans CJK TC', 'PingFang TC', 'Microsoft JhengHei', sans-serif"


# ---- HTML -------------------------------------------------------------------------------------------------------------------------


def as_html(document: Document) -> str:
    """One page; plotly's code stands in it once, and its policy lets it ask for nothing."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            document=document,
            figures=[payload(chart, document.simulated) for section in document.sections for chart in charts_of(section)],
            plotly=get_plotlyjs().replace("</script", "<\\/script"),
            kind=lambda block: type(block).__name__,
            font=SYSTEM_FONT,
        )
    )


@cache
def environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def charts_of(section: Section) -> list[Chart]:
    return [block for block in section.blocks if isinstance(block, Chart)]


def payload(chart: Chart, simulated: str) -> str:
    """The figure as JSON that no name from the data can end the script of. Axes make room for their labels; colours are the page's."""
    figure = json.loads(chart.figure.to_json())
    layout: dict[str, Any] = figure["layout"]
    layout.pop("template", None)
    layout.update(
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={**layout.get("font", {}), "family": SYSTEM_FONT}
    )
    for name, axis in layout.items():
        if name.startswith(("xaxis", "yaxis")):
            axis["automargin"] = True
            axis.get("title", {}).setdefault("standoff", 12)
    if simulated:
        layout["margin"] = {**layout["margin"], "t": layout["margin"]["t"] + 20}
        layout["title"] = {
            "text": simulated, "font": {"size": 12, "weight": 700}, "pad": {"t": 2, "r": 2},
            "xref": "container", "x": 1, "xanchor": "right", "yref": "container", "y": 1, "yanchor": "top",
        }  # fmt: skip
    return json.dumps(figure).replace("<", "\\u003c")  # ASCII: every other letter is escaped already


# ---- Markdown ---------------------------------------------------------------------------------------------------------------------


def as_markdown(document: Document) -> str:
    """Headings, sentences and tables; a chart and a picture as what is said of them."""
    mark = f"**{plain(document.simulated)}** " if document.simulated else ""
    parts = [f"# {mark}{plain(document.title)}", plain(document.lead)]
    parts += [f"> {plain(document.warning)}"] if document.warning else []
    for section in document.sections:
        parts.append(f"## {plain(section.title)}")
        parts += [part for block in section.blocks if (part := block_as_markdown(block, mark))]
    return "\n\n".join([*parts, "---", *(plain(line) for line in document.footer)]) + "\n"


def block_as_markdown(block: Any, mark: str) -> str:
    match block:
        case Text():
            return plain(block.words)
        case Case():
            return f"### {plain(block.title)}"
        case Chart():
            return f"{mark}*{plain(block.caption)}* – {plain(block.words)}"
        case Table():
            return table_as_markdown(block)
        case Code():
            longest = max((len(run) for run in re.findall(r"`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{plain(block.summary)}\n\n{fence}\n{block.text.rstrip()}\n{fence}"
        case Pictures():
            told = [": ".join(plain(part) for part in (picture.caption, picture.text) if part) for picture in block.pictures]
            return "\n".join(f"- {line}" for line in told)
    raise TypeError(f"No Markdown is known for a {type(block).__name__}")


def table_as_markdown(table: Table) -> str:
    rules = ["---:" if place in table.numbers else "---" for place in range(len(table.columns))]
    rows = [[plain(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]
    return "\n".join([f"*{plain(table.caption)}*", "", *lines])


def plain(text: str) -> str:
    """One line with nothing in it that Markdown, or HTML in Markdown, would act on."""
    flat = " ".join(text.split())
    escaped = re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"^([-+=])(?=[\s=-]|$)", r"\\\1", escaped)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
