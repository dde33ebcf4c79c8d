"""Saved views as one HTML file: title, note, author and settings of each, and the chart of its page where the settings say all of it.

A chart is drawn only where every parameter of the saved view is one that is understood here, with a value that is understood; anything
else might change what the page showed, and a chart that shows something else is worse than none.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from tracin_core import __version__, charts
from tracin_core.charts import short
from tracin_core.errors import TracInError
from tracin_core.records.findings import SavedView
from tracin_core.records.report.blocks import Block, Chart, Document, Section, Table, Text
from tracin_core.records.report.rendering import as_html
from tracin_core.records.report.sections import moment
from tracin_core.records.report.sentences import example_name
from tracin_core.records.report.texts import Words, catalogue
from tracin_core.records.runs import Run
from tracin_core.scores.view import View

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

SHOWN: Final = 20
BARS: Final = 10


def saved_html(views: Sequence[SavedView], language: str = "en", *, place: "Workspace") -> str:
    """One page, in the order given, that asks nobody for anything.

    Raises:
        ViewError: there is no such language.
    """
    catalogue(language)
    words = Words(language, "pair")
    runs = {view.run: _run(place, view.run) for view in views}
    simulated = any(run is not None and run.simulated for run in runs.values())
    document = Document(
        language,
        views[0].title if len(views) == 1 else words("saved.title", n=len(views)),
        words("saved.lead", n=len(views), when=moment(max((view.created for view in views), default=0.0))),
        words("simulated") if simulated else "",
        words("contents"),
        tuple(section(view, runs[view.run], language) for view in views),
        (words("footer.written", version=__version__),),
    )
    return as_html(document)


def _run(place: "Workspace", run_id: str) -> Run | None:
    try:
        return place.run(run_id) if run_id else None
    except TracInError:
        return None  # the section says so


# ---- one saved view -------------------------------------------------------------------------------------------------------------


def section(saved: SavedView, run: Run | None, language: str) -> Section:
    """What was saved, what has changed since, and the chart where it can be drawn."""
    words = Words(language, run.noun if run else "pair")
    who = saved.author or words("saved.nobody")
    blocks: list[Block] = [Text(words("saved.by", who=who, when=moment(saved.created), page=page_name(saved, words)))]
    blocks += [Text(line) for line in saved.note.splitlines() if line.strip()]
    blocks += [Text(words(f"saved.changed.{what}")) for what in changes(saved, run)]
    blocks.append(settings(saved, words))
    blocks += drawn(saved, run, words)
    return Section(f"saved-{saved.id}", saved.title, tuple(blocks))


def changes(saved: SavedView, run: Run | None) -> tuple[str, ...]:
    """What is no longer as it was when the view was saved."""
    return ("missing",) if saved.run and run is None else saved.changes(run.digest if run else saved.digest)


def page_name(saved: SavedView, words: Words) -> str:
    return words(f"saved.page.{saved.page}") if words.has(f"saved.page.{saved.page}") else saved.page


def settings(saved: SavedView, words: Words) -> Table:
    """The address's parameters in words, and as they are where there are none."""
    rows = [(words("saved.run"), f"{saved.run_name} ({saved.run})")] if saved.run else []
    for name, value in saved.parameters.items():
        if name != "run":
            label = words(f"saved.parameter.{name}") if words.has(f"saved.parameter.{name}") else name
            told = words(f"saved.value.{name}.{value}") if words.has(f"saved.value.{name}.{value}") else value
            rows.append((label, told))
    rows += [(words("saved.digest"), saved.digest)] if saved.digest else []
    rows.append((words("saved.version"), saved.version))
    return Table(words("saved.settings"), (words("column.setting"), words("column.value")), tuple(rows))


# ---- charts ---------------------------------------------------------------------------------------------------------------------

SCORES: Final = ("self_influence", "mean_influence", "worst_influence")
ANY: Final = None
# page -> parameter -> the values under which the chart here is the page's; ANY: it does not change the chart, or the drawing reads it.
UNDERSTOOD: Final[dict[str, dict[str, tuple[str, ...] | None]]] = {
    "overview": {},
    "distribution": {
        "look": ("spread",),
        "score": SCORES,
        "scale": charts.SCALES,
        "form": ("bars",),
        "tail": ANY,
        "over": ("",),
        "only": ("",),
    },
    "angles": {"grid": ("each",), "score": SCORES, "statistic": ("mean", "median"), "cell": ANY},
    "neighbours": {
        "direction": ("test",),
        "tests": ANY,
        "test": ANY,
        "side": ("proponents", "opponents"),
        "band": ANY,
        "flip": ("False",),
    },
    "threshold": {
        "rule": ("harm",),
        "mode": ("ranking_pair", "full_pair", "sample"),
        "given": ("score",),
        "m": ANY,
        "most": ANY,
        "T": ANY,
        "S": ANY,  # this and the rest: what was looked at closer
        "desk": ANY,
        "cards": ANY,
        "look": ANY,
    },
}


def drawn(saved: SavedView, run: Run | None, words: Words) -> list[Block]:
    """The chart of the page; a sentence where it cannot be drawn."""
    if run is None:
        return []
    known = UNDERSTOOD.get(saved.page)
    asked = {name: value for name, value in saved.parameters.items() if name != "run"}
    if known is None or not all(name in known and _is_understood(value, known[name]) for name, value in asked.items()):
        return [Text(words("saved.no_chart"))]
    try:
        return DRAWERS[saved.page](run.view(), asked, words)
    except (TracInError, ValueError, KeyError) as failure:
        return [Text(words("saved.failed", why=str(failure)))]


def _is_understood(value: str, allowed: tuple[str, ...] | None) -> bool:
    return allowed is ANY or value in allowed


def _histogram(view: View, asked: dict[str, str], words: Words) -> list[Block]:
    score = asked.get("score", "self_influence")
    values = _values(view, score)
    bins = charts.histogram(values, next(scale for scale in charts.SCALES if scale == asked.get("scale", "asinh")))
    figure = charts.histogram_figure(bins, x=_score_name(score, words), y=words("axis.examples"), zeros=words("axis.zeros"))
    low, median, high = (short(float(value)) for value in np.quantile(values, [0.05, 0.5, 0.95]))
    told = words("histogram.words", n=len(values), zeros=int(np.sum(values == 0)), low=low, median=median, high=high)
    return [Chart(_score_name(score, words), told, figure)]


def _grid(view: View, asked: dict[str, str], words: Words) -> list[Block]:
    score, statistic = asked.get("score", "self_influence"), asked.get("statistic", "mean")
    cells = view.angle_grid(_values(view, score))
    ends = [(low, high) for low, high in zip(cells["low"], cells["high"], strict=True)]
    chosen = next(
        (end for end in ends if asked.get("cell") in (f"{end[0]}-{end[1]}", str(end[0]) if end[0] == end[1] else None)), None
    )
    name = words(f"saved.value.statistic.{statistic}")
    figure = charts.grid_figure(cells, statistic, x=words("axis.high"), y=words("axis.low"), name=name, chosen=chosen)
    order = cells.sort_values(statistic, kind="stable")
    told = {
        which: f"{charts.marked(cell['low'])} – {charts.marked(cell['high'])} ({short(cell[statistic])})"
        for which, cell in (("lowest", order.iloc[0]), ("highest", order.iloc[-1]))
    }
    return [Chart(f"{_score_name(score, words)}: {name}", words("saved.grid.words", **told), figure)]


def _ranked(view: View, asked: dict[str, str], words: Words) -> list[Block]:
    test, side = asked["test"], asked.get("side", "proponents")
    ranked = view.top(test, k=BARS)[0 if side == "proponents" else 1]
    if ranked.empty:
        return [Text(words("saved.none"))]
    named = ranked.assign(name=[example_name(example) for _, example in ranked.iterrows()])
    figure = charts.ranked_figure(named, "influence", "name", x=words("score.influence"))
    first = named.iloc[0]
    told = words("saved.ranked.words", n=len(named), name=first["name"], value=short(first["influence"]))
    return [Chart(f"{words(f'saved.value.side.{side}')}: {test}", told, figure)]


def _list(view: View, asked: dict[str, str], words: Words) -> list[Block]:
    most = int(asked.get("most", 0)) or None
    mode = asked.get("mode", "ranking_pair" if view.train.noun == "pair" else "sample")
    chosen = view.exclusions(float(asked["T"]), int(asked["m"]), most, next(known for known in MODES if known == mode))
    columns = [name for name in ("id", "occurrences", "average_influence", "total_harm") if name in chosen]
    rows = [tuple(_cell(value) for value in row) for row in chosen[columns].head(SHOWN).itertuples(index=False)]
    told = words("saved.list.words", shown=len(rows), n=len(chosen), removed=int(view.removed(chosen).sum()), of=len(view.train))
    names = tuple(words(f"saved.list.{name}") for name in columns)
    return [Text(told), Table(words("saved.list"), names, tuple(rows), frozenset(range(1, len(columns))))]


MODES: Final = ("ranking_pair", "full_pair", "sample")
DRAWERS: Final[dict[str, Callable[[View, dict[str, str], Words], list[Block]]]] = {
    "overview": _histogram, "distribution": _histogram, "angles": _grid, "neighbours": _ranked, "threshold": _list,
}  # fmt: skip


def _values(view: View, score: str) -> Any:
    return {"self_influence": view.self_influence, "mean_influence": view.mean_influence, "worst_influence": view.worst_influence}[
        score
    ]()


def _score_name(score: str, words: Words) -> str:
    return words(f"saved.value.score.{score}")


def _cell(value: Any) -> str:
    return short(float(value)) if isinstance(value, float) and not pd.isna(value) else str(value)
