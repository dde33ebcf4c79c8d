"""Pieces of a page: failures as advice, progress, pickers, figures, the threshold that is dragged."""

import logging
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from pages.shared import session
from pages.shared.i18n import has, t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.errors import JobFailedError, TracInError
from tracin_core.records.calibrations import name_of, recommended_score
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.scores.influence import top_share
from tracin_core.scores.view import View

log = logging.getLogger(__name__)
HERE: Final = Path(__file__).parent


# ---- states ---------------------------------------------------------------------------------------------------------------------


def failure(error: Exception) -> None:
    """The error as a card: what it is, its cause with the values, and the next step. An unexpected one gets an id for the log."""
    if isinstance(error, TracInError):
        kind = next(kind.__name__ for kind in type(error).__mro__ if has(f"error.{kind.__name__}"))
        st.error(f"**{t(f'error.{kind}')}**\n\n{plain(str(error))}\n\n{t(f'error.{kind}.next')}", icon=":material/error:")
        return
    number = uuid.uuid4().hex[:8]
    log.error("unexpected error %s", number, exc_info=error)
    st.error(f"**{t('error.unexpected')}**\n\n{t('error.unexpected.next', id=number)}", icon=":material/bug_report:")


class Lacking(Exception):
    """A run that was imported has no such scores. Not a failure: the frame says which file would bring them."""


def require(run: Run, part: str) -> None:
    """The run has this part of the scores: self_influence, influence or contributions.

    Raises:
        Lacking: it was imported without.
    """
    if part in run.lacks:
        raise Lacking(part)


def last_failure() -> None:
    """The newest job's error, if it did not end well."""
    newest = next(iter(session.workspace().jobs(limit=1)), None)
    if newest is not None and newest.error:
        failure(JobFailedError(f"{job_title(newest)}: {newest.error}"))


def nothing_matches(reason: str) -> None:
    """The choices leave nothing to show; says why and what to change."""
    st.info(reason, icon=":material/filter_alt_off:")


def progress(job: Job) -> None:
    """A job's title and state; while it is live also bar, step and remaining time."""
    key = f"job.step.{job.step}"
    step = t(key) if has(key) else plain(job.step)
    eta = t("job.eta", duration=duration(job.eta_seconds)) if job.eta_seconds is not None else ""
    st.markdown(f"**{plain(job_title(job))}**")
    if job.is_live:
        st.progress(min(max(job.fraction, 0.0), 1.0), text=" · ".join(filter(None, [t(f"job.state.{job.state}"), step, eta])))
    else:
        st.markdown(t(f"job.state.{job.state}"))


def job_title(job: Job) -> str:
    """What the job is about, in the language in use; what somebody named bears that name."""
    asked = job.request
    name = asked.get("recipe", {}).get("name", "")
    if job.kind == "retraining":
        return t("job.title.list", name=name, n=asked["entries"], action=t(f"verify.action.{asked.get('action', 'exclude')}"))
    if job.kind == "faithfulness":
        return t(f"job.title.{asked.get('drawn', 'halves')}", name=name, n=asked["subsets"])
    if job.kind == "calibration":
        task = asked["recipe"]["task"]["kind"]
        return t(
            "job.title.errors",
            name=name,
            share=f"{asked['share']:.0%}",
            errors=t(f"calibrate.noise.{task}.{asked['noise']}"),
            n=len(asked["seeds"]),
        )
    return t("job.title.digits") if asked.get("digits") else job.title


def reached(value: float, *, number: bool) -> str:
    """What a model reaches: a share of tests or examples in percent, or an error of numbers in its unit."""
    return f"{value:.4g}" if number else f"{value:.1%}"


def right(value: float) -> str:
    """Whether a single pair or sample is right (1), undecided (0.5) or wrong (0), in a word."""
    return t("preview.right" if value > 0.5 else "preview.wrong" if value < 0.5 else "preview.tied")


def duration(seconds: float) -> str:
    """A length of time in words, as rough as it is long."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return t("duration.seconds", n=whole)
    if whole < 5 * 60:
        return t("duration.minutes", minutes=whole // 60, seconds=whole % 60)
    minutes = round(whole / 60)
    return (
        t("duration.whole_minutes", n=minutes) if minutes < 60 else t("duration.hours", hours=minutes // 60, minutes=minutes % 60)
    )


# ---- a run in figures and words -------------------------------------------------------------------------------------------------


def key_figures(run: Run, view: View) -> None:
    """Five numbers that say whether the run is sound."""
    own = None if "self_influence" in run.lacks else view.self_influence()
    quality = "validation_loss" if run.task == "regression" else "validation_accuracy"
    last = run.checkpoints[quality].iloc[-1] if len(run.checkpoints) else np.nan
    told = "–" if pd.isna(last) else f"{last:.4g}" if quality == "validation_loss" else f"{last:.1%}"
    figures = {
        "pairs": f"{len(view.train_pairs):,}",
        "tests": t("figure.tests.value", live=int((~view.dead_tests).sum()), total=len(view.test_pairs)),
        "zeros": "–" if own is None else f"{np.mean(own == 0):.1%}",
        "top_share": "–" if own is None else f"{top_share(own):.0%}",
        quality.removeprefix("validation_"): told,
    }
    cards("figure", figures)


def cards(kind: str, figures: dict[str, str]) -> None:
    """Figures side by side, as many as there is room for; texts `<kind>.<name>` and `<kind>.<name>.help`."""
    with st.container(horizontal=True):
        for name, value in figures.items():
            st.metric(t(f"{kind}.{name}"), value, help=t(f"{kind}.{name}.help"), border=True, width=174)


def health(run: Run) -> None:
    """The engine's checks of itself: what is not met in plain words, and all of them, with what was measured, on request."""
    checks = run.health()
    failed = checks[~checks["passed"].astype(bool)]
    for _, check in failed.iterrows():
        what = t("health.not_met", what=t(f"health.{check['check']}"))
        st.markdown(f":orange[:material/warning:] **{what}** {plain(check['detail'])}")
    met, icon = len(checks) - len(failed), ":material/check_circle:" if failed.empty else ":material/warning:"
    told = t("health.all_met", n=len(checks)) if failed.empty else t("health.some_met", met=met, n=len(checks))
    with st.expander(told, icon=icon):
        for _, check in checks.iterrows():
            mark = ":green[:material/check_circle:]" if check["passed"] else ":orange[:material/warning:]"
            name = f"health.{check['check']}"
            st.markdown(f"{mark} {t(name)}  \n:small[{plain(check['detail'])}]")


def planted_faults(run: Run, ranked: pd.DataFrame) -> None:
    """Where faults were planted in the data: which, and how many of the first examples touch one. Nothing where none were."""
    if not run.truth:
        return
    wrong = {fault["sample"] for fault in run.truth if fault["kind"] == "wrong_label"}
    touching = ranked[[end for end in ("id1", "id2") if end in ranked] or ["id"]].isin(wrong).any(axis=1)
    first = touching.head(50)
    with st.expander(t("truth.title"), icon=":material/science:"):
        st.markdown(t("truth.found", found=int(first.sum()), first=len(first), samples=len(wrong), share=f"{touching.mean():.0%}"))
        table = pd.DataFrame(run.truth)
        table["kind"] = [t(f"truth.{kind}") for kind in table["kind"]]
        table["detail"] = [", ".join(f"{name} = {value}" for name, value in detail.items()) for detail in table["detail"]]
        names = {name: t(f"truth.column.{name}") for name in ("sample", "kind", "detail")}
        st.dataframe(table[list(names)], hide_index=True, column_config=names)


# ---- choices that a link carries ------------------------------------------------------------------------------------------------

SCORES: Final = ("self_influence", "mean_influence", "worst_influence")


def choose_code(name: str, codes: Sequence[str], *, key: str, recommended: str | None = None) -> str:
    """One of a few codes, shown in the language in use (texts `<name>` and `<name>.<code>`); the first is the default.

    Args:
        recommended: what is the default instead, and marked so, if it is among them.
    """

    def label(code: str) -> str:
        return t(f"{name}.{code}") + (f" · {t('recommended')}" if code == recommended else "")

    default = recommended if recommended in codes else codes[0]
    picker = session.linked(key, str(default), valid=codes)
    return str(st.segmented_control(t(name), list(codes), format_func=label, required=True, **picker))


def choose_score(*, key: str) -> str:
    """Which number of each training pair the page is about, of those that the run in view has; first what was found to be the best."""
    run = session.selected_run()
    there = [score for score in SCORES if ("self_influence" if score == "self_influence" else "influence") not in run.lacks]
    return choose_code("score", there, key=key, recommended=recommended_score(session.workspace(), run))


def score_label(score: str) -> str:
    """A calibrated score in words: what it is, and by which method."""
    kind, method = name_of(score)
    if not kind:
        return t(f"compare.method.{method}")
    return t(f"score.{kind}") if method == "tracin" else f"{t(f'score.{kind}')} · {t(f'compare.method.{method}')}"


def recommended(run: Run) -> None:
    """A badge of the score that the calibration of this data recommends; nothing where there is none."""
    score = recommended_score(session.workspace(), run)
    if score is not None:
        told = t("recommended.badge", score=score_label(score))
        st.badge(told, icon=":material/straighten:", color="green", help=t("recommended.badge.help"))


def score_values(view: View, score: str) -> charts.Array:
    """That number of every training pair."""
    return {"self_influence": view.self_influence, "mean_influence": view.mean_influence, "worst_influence": view.worst_influence}[
        score
    ]()


# ---- charts ---------------------------------------------------------------------------------------------------------------------


def chart(figure: go.Figure, *, key: str, alt: str) -> None:
    """The figure, with its takeaway in words for those who do not see it."""
    st.plotly_chart(themed(figure), key=key, alt=alt, config={"displayModeBar": False})


def themed(figure: go.Figure) -> go.Figure:
    """The figure in the colours of the visitor's theme."""
    return charts.darkened(figure) if getattr(st.context.theme, "type", None) == "dark" else figure


def pressed(figure: go.Figure, *, key: str, alt: str) -> int | None:
    """The figure of a grid; gives back the row of the cell that was just clicked."""
    config = {"displayModeBar": False}
    return charts.clicked(
        st.plotly_chart(themed(figure), key=key, alt=alt, on_select="rerun", selection_mode="points", config=config)
    )


def grid(cells: pd.DataFrame, figure: go.Figure, *, key: str, alt: str) -> None:
    """The grid of `charts.grid_figure`; a click on a cell chooses it in `choose_cell` of the same key, a second click lets it go.

    The figure frames the chosen cell, so Streamlit forgets the click itself when it is drawn anew: the choice lives in the picker.
    """

    def choose_clicked() -> None:
        row = charts.clicked(st.session_state[f"{key}.grid"])
        if row is not None:
            cell = cell_name(cells["low"].iloc[row], cells["high"].iloc[row])
            session.choose(key, "" if st.session_state.get(key) == cell else cell)

    st.plotly_chart(
        themed(figure),
        key=f"{key}.grid",
        alt=alt,
        on_select=choose_clicked,
        selection_mode="points",
        config={"displayModeBar": False},
    )


def choose_cell(grid: pd.DataFrame, *, key: str, label: str) -> tuple[Any, Any] | None:
    """The cell chosen, by its low and high, or None for all of them; the keyboard's way to what a click in the grid does.

    Args:
        grid: as `View.angle_grid` gives it.
        key: holds "" or the cell's name.
    """
    ends = {cell_name(low, high): (low, high) for low, high in zip(grid["low"], grid["high"], strict=True)}
    cells = ["", *ends]
    name = {cell: cell_label(*of_cell) for cell, of_cell in ends.items()}
    chosen = st.selectbox(
        label, cells, format_func=lambda cell: name.get(cell, t("cell.all")), **session.linked(key, "", valid=cells)
    )
    return ends.get(str(chosen))


def cell_name(low: Any, high: Any) -> str:
    """A cell of the grid in the address: two angles, or a group of samples."""
    return str(low) if low == high else f"{low}-{high}"


def cell_label(low: Any, high: Any) -> str:
    """A cell of the grid in words."""
    return str(low) if low == high else f"{int(low)}° – {int(high)}°"


def spread_in_words(values: charts.Array) -> str:
    """A histogram's takeaway: how many scores, exact zeros, middle and tails."""
    at = charts.quantiles(values)
    told = {name: charts.short(at[share]) for name, share in (("low", 0.05), ("median", 0.5), ("high", 0.95))}
    return t("spread.words", n=len(values), zeros=int(np.sum(values == 0)), **told)


def grid_in_words(cells: pd.DataFrame, statistic: str) -> str:
    """A grid's takeaway: its lowest and highest cell."""
    low, high = cells.loc[cells[statistic].idxmin()], cells.loc[cells[statistic].idxmax()]
    told = [f"{plain(cell_label(cell['low'], cell['high']))} ({charts.short(cell[statistic])})" for cell in (low, high)]
    return t("grid.words", lowest=told[0], highest=told[1])


def quantile_table(quantiles: dict[float, float]) -> None:
    """Quantiles in one row."""
    st.dataframe(pd.DataFrame([{f"{share:.0%}": charts.short(value) for share, value in quantiles.items()}]), hide_index=True)


# ---- the document ---------------------------------------------------------------------------------------------------------------


def document(language: str) -> None:
    """The browser's document is in this language, and choices on a page are no steps in its history."""
    _document()(key="document", data={"language": language}, height=1)


@cache
def _document() -> Callable[..., Any]:
    return st.components.v2.component("document", js=asset("document.js"))


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
