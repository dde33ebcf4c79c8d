"""Pieces of a page: failures as advice, progress, pickers, galleries of examples, the threshold that is dragged."""

import base64
import logging
import uuid
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from pages.shared import session
from pages.shared.i18n import has, t, template
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.data.seals import unsealed_text
from tracin_core.errors import JobFailedError, TracInError
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.scores.influence import top_share
from tracin_core.scores.rollups import influence_grid
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


def last_failure() -> None:
    """The newest job's error, if it did not end well."""
    newest = next(iter(session.workspace().jobs(limit=1)), None)
    if newest is not None and newest.error:
        failure(JobFailedError(f"{newest.title}: {newest.error}"))


def nothing_matches(reason: str) -> None:
    """The choices leave nothing to show; says why and what to change."""
    st.info(reason, icon=":material/filter_alt_off:")


def progress(job: Job) -> None:
    """A job's title and state; while it is live also bar, step and remaining time."""
    key = f"job.step.{job.step}"
    step = t(key) if has(key) else plain(job.step)
    eta = t("job.eta", duration=duration(job.eta_seconds)) if job.eta_seconds is not None else ""
    st.markdown(f"**{plain(job.title)}**")
    if job.is_live:
        st.progress(min(max(job.fraction, 0.0), 1.0), text=" · ".join(filter(None, [t(f"job.state.{job.state}"), step, eta])))
    else:
        st.markdown(t(f"job.state.{job.state}"))


def duration(seconds: float) -> str:
    """A length of time in words, as rough as it is long."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return t("duration.seconds", n=whole)
    return t("duration.minutes", minutes=whole // 60, seconds=whole % 60)


# ---- a run in figures and words -------------------------------------------------------------------------------------------------


def key_figures(run: Run, view: View) -> None:
    """Five numbers that say whether the run is sound."""
    own = view.self_influence()
    last = run.checkpoints.iloc[-1]
    quality = "validation_loss" if run.task == "regression" else "validation_accuracy"
    told = "–" if pd.isna(last[quality]) else f"{last[quality]:.4g}" if quality == "validation_loss" else f"{last[quality]:.1%}"
    figures = {
        "pairs": f"{len(view.train_pairs):,}",
        "tests": t("figure.tests.value", live=int((~view.dead_tests).sum()), total=len(view.test_pairs)),
        "zeros": f"{np.mean(own == 0):.1%}",
        "top_share": f"{top_share(own):.0%}",
        quality.removeprefix("validation_"): told,
    }
    cards("figure", figures)


def cards(kind: str, figures: dict[str, str]) -> None:
    """Figures side by side, as many as there is room for; texts `<kind>.<name>` and `<kind>.<name>.help`."""
    with st.container(horizontal=True):
        for name, value in figures.items():
            st.metric(t(f"{kind}.{name}"), value, help=t(f"{kind}.{name}.help"), border=True, width=190)


def health(run: Run) -> None:
    """The engine's checks of itself in plain words; what was measured, on request."""
    checks = run.health()
    for _, check in checks.iterrows():
        what = t(f"health.{check['check']}")
        if check["passed"]:
            st.markdown(f":green[:material/check_circle:] {what}")
        else:
            st.markdown(f":orange[:material/warning:] {t('health.not_met', what=what)}  \n{plain(check['detail'])}")
    with st.expander(t("health.details")):
        for _, check in checks.iterrows():
            st.markdown(f"**{plain(check['check'])}** {plain(check['detail'])}")


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


def choose_code(name: str, codes: Sequence[str], *, key: str) -> str:
    """One of a few codes, shown in the language in use (texts `<name>` and `<name>.<code>`); the first is the default."""
    return str(
        st.segmented_control(
            t(name),
            list(codes),
            format_func=lambda code: t(f"{name}.{code}"),
            required=True,
            **session.linked(key, codes[0], valid=codes),
        )
    )


def choose_score(*, key: str) -> str:
    """Which number of each training pair the page is about."""
    return choose_code("score", SCORES, key=key)


def score_values(view: View, score: str) -> charts.Array:
    """That number of every training pair."""
    return {"self_influence": view.self_influence, "mean_influence": view.mean_influence, "worst_influence": view.worst_influence}[
        score
    ]()


# ---- charts ---------------------------------------------------------------------------------------------------------------------


def chart(figure: go.Figure, *, key: str, alt: str) -> None:
    """The figure, with its takeaway in words for those who do not see it."""
    st.plotly_chart(figure, key=key, alt=alt, config={"displayModeBar": False})


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
        figure, key=f"{key}.grid", alt=alt, on_select=choose_clicked, selection_mode="points", config={"displayModeBar": False}
    )


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


def group_matrix(view: View) -> None:
    """Which groups of training samples help or harm which groups of test samples, in the mean."""
    st.subheader(t("groups.matrix"))
    found = influence_grid(view, by="group", ends="first").rename(columns={"train_group": "low", "test_group": "high"})
    cells = found.astype({"low": str, "high": str})
    figure = charts.grid_figure(cells, "mean", x=t("groups.test"), y=t("groups.train"), name=t("statistic.mean"))
    chart(figure, key="groups.matrix", alt=t("groups.matrix"))


def quantile_table(quantiles: dict[float, float]) -> None:
    """Quantiles in one row."""
    st.dataframe(pd.DataFrame([{f"{share:.0%}": charts.short(value) for share, value in quantiles.items()}]), hide_index=True)


def ranked(examples: pd.DataFrame, *, key: str) -> None:
    """The strongest examples as bars; says so where there is none."""
    if examples.empty:
        nothing_matches(t("ranked.none"))
        return
    named = examples.assign(name=[example_label(example) for _, example in examples.iterrows()])
    first = named.iloc[0]
    alt = t("ranked.words", n=len(named), name=first["name"], value=charts.short(first["influence"]))
    chart(charts.ranked_figure(named, "influence", "name", x=t("score.influence")), key=key, alt=alt)


# ---- examples -------------------------------------------------------------------------------------------------------------------


def example_label(example: pd.Series) -> str:
    """A pair in words: `0° – 36° · takes 03, 07`; or a sample: `7 · digit_0123`."""
    if "id1" in example:
        takes = f"{take(example['id1'])}, {take(example['id2'])}"
        return t("pair.label", angle1=f"{example['angle1']:g}", angle2=f"{example['angle2']:g}", takes=takes)
    return f"{sample_target(example)} · {example['id']}"


def sample_target(sample: pd.Series) -> str:
    """What a sample is said to be: the name of its label, or its number."""
    if "label" in sample or "label_name" in sample:
        return t("sample.label", label=sample.get("label_name", sample.get("label")))
    return t("sample.target", target=f"{sample['target']:.4g}")


def take(sample_id: str) -> str:
    """The number of the recording within its class, the last part of a sample's id."""
    return sample_id.rpartition("_")[2]


def choose_test(tests: pd.DataFrame, *, dead: npt.NDArray[np.bool_], key: str, label: str) -> str:
    """The id of the test chosen, by what names it, the dead ones last and marked; tied to the address."""
    order = np.argsort(dead, kind="stable")
    marks = {True: t("pair.dead"), False: ""}
    names = {str(tests["id"].iloc[row]): example_label(tests.iloc[row]) + marks[bool(dead[row])] for row in order}
    picker = session.linked(key, next(iter(names)), valid=names)
    return str(st.selectbox(label, list(names), format_func=names.__getitem__, **picker))


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


def score_columns(score: str, *, percentile: bool = True) -> dict[str, Any]:
    """The gallery's columns for pairs ranked by a score; without percentiles where there is little room."""
    value = {"score": st.column_config.NumberColumn(t(f"score.{score}"), format="%.4g")}
    return {**value, **percentile_column()} if percentile else value


def percentile_column() -> dict[str, Any]:
    return {"percentile": st.column_config.NumberColumn(t("percentile"), format="%.1f", help=t("percentile.help"))}


def influence_columns() -> dict[str, Any]:
    """The gallery's columns for the proponents or opponents of a test pair."""
    return {
        "influence": st.column_config.NumberColumn(t("score.influence"), format="%.4g"),
        **percentile_column(),
        "contributions": st.column_config.BarChartColumn(t("contributions"), help=t("contributions.help")),
    }


def explore(
    run: Run,
    examples: pd.DataFrame,
    *,
    key: str,
    columns: dict[str, Any],
    rows: int = 20,
    total: int | None = None,
    sounds: bool = True,
) -> str | None:
    """A gallery, and below it the card of the row selected, else of the first; gives back that example's id."""
    picked = gallery(run, examples, key=key, columns=columns, rows=rows, total=total, sounds=sounds)
    if examples.empty:
        return None
    example = examples.iloc[0] if picked is None else examples[examples["id"] == picked].iloc[0]
    example_card(run, example)
    return str(example["id"])


def gallery(
    run: Run,
    examples: pd.DataFrame,
    *,
    key: str,
    columns: dict[str, Any],
    rows: int = 20,
    total: int | None = None,
    sounds: bool = True,
) -> str | None:
    """A table of examples with what there is to see and hear of them; gives back the id of the selected row.

    Args:
        examples: columns id, those that name an example, and those named in `columns`, best first; the first `rows` are shown, and
            said to be.
        columns: column -> `st.column_config` or label, in the order shown.
        total: how many there are, where `examples` holds only the first of them.
        sounds: False where there is little room; the card below has the players.
    """
    shown = examples.head(rows).reset_index(drop=True)
    if shown.empty:
        nothing_matches(t("gallery.empty"))
        return None
    table, parts = pd.DataFrame({"id": shown["id"]}), {}
    for side in ("1", "2") if "id1" in shown else ("",):
        samples = shown[f"id{side}"]
        told = [side_label(example, side) for _, example in shown.iterrows()]
        previews = [data_url(run, sample) for sample in samples]
        table[f"what{side}"] = told
        parts[f"what{side}"] = t("pair.side", side=side)
        for name, column, values in zip(
            ("picture", "sound"), (picture_column(), sound_column()), zip(*previews, strict=True), strict=True
        ):
            if any(values) and (sounds or name != "sound"):
                table[f"{name}{side}"] = values
                parts[f"{name}{side}"] = column
    table = table.join(shown[list(columns)])
    with_pictures = any(name.startswith("picture") for name in parts)
    height = 72 if with_pictures else 38
    selection = st.dataframe(
        table,
        key=key,
        hide_index=True,
        row_height=height,
        height=min(36 + height * len(table), 540),
        column_order=[*columns, *parts],
        column_config={**parts, **columns},
        on_select="rerun",
        selection_mode="single-row",
    )
    told = t("gallery.shown", shown=len(shown), total=len(examples) if total is None else total) + (
        f" {t('gallery.play')}" if any(name.startswith("sound") for name in parts) else ""
    )
    st.markdown(f":small[{told}]")
    picked = selection["selection"]["rows"]
    return str(table["id"].iloc[picked[0]]) if picked and picked[0] < len(table) else None


def side_label(example: pd.Series, side: str) -> str:
    """One side of a pair, or the sample itself, in a few words."""
    if side:
        return f"{example[f'angle{side}']:g}° · {take(example[f'id{side}'])}"
    return example_label(example)


def picture_column() -> Any:
    return st.column_config.ImageColumn(t("spectrogram"), width="small")


def sound_column() -> Any:
    return st.column_config.AudioColumn(t("sound"), width="small")


def example_card(run: Run, example: pd.Series) -> None:
    """Both samples of a pair side by side, or the sample: what it is, its name, and what there is to see and hear of it."""
    if "id1" not in example:
        with st.container(border=True):
            st.markdown(f"**{plain(sample_target(example))}** · {plain(str(example['id']))}")
            sample_player(run, str(example["id"]))
        return
    for side, column in zip("12", st.columns(2), strict=True):
        with column, st.container(border=True):
            sample = str(example[f"id{side}"])
            st.markdown(f"**{example[f'angle{side}']:g}°** · {plain(sample)}")
            sample_player(run, sample)


def sample_player(run: Run, sample_id: str) -> None:
    """A sample's picture, as the model sees it, its player and its text; says so where nothing of it is there."""
    preview = run.preview(sample_id)
    if not any(file.is_file() for file in preview):
        st.info(t("preview.missing", id=plain(sample_id)), icon=":material/hearing_disabled:")
    if preview.picture.is_file():
        st.image(str(preview.picture), width=360 if preview.sound.is_file() else 180, alt=t("spectrogram.alt", id=sample_id))
    if preview.sound.is_file():
        st.audio(str(preview.sound))
    if preview.text.is_file():
        st.code(unsealed_text(preview.text.read_text(encoding="utf-8")), language=None, wrap_lines=True)


def data_url(run: Run, sample_id: str) -> tuple[str | None, str | None]:
    """A sample's picture and sound as data URLs, each None where its file is not there."""
    preview = run.preview(sample_id)
    files = ((preview.picture, "image/png"), (preview.sound, "audio/wav"))
    picture, sound = (_data_url(path, kind) if path.is_file() else None for path, kind in files)
    return picture, sound


@lru_cache(maxsize=500)
def _data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"  # files are named by content: never stale


# ---- the threshold that is dragged ----------------------------------------------------------------------------------------------


def drag_threshold(
    key: str,
    histogram: charts.Histogram,
    steps: pd.DataFrame,
    *,
    value: float,
    total: int,
    scores: str,
    on_release: Callable[[float], None],
) -> None:
    """A histogram whose threshold follows the mouse, or the keyboard, with exact counts and no word to the server until it is let go.

    Args:
        histogram: of the scores that the threshold is compared with, so that the bars left of the line are what is counted.
        steps: as `Sweep.counts` gives it: threshold, pairs, samples; ascending; must hold a row for `value`.
        value: where the threshold stands, and what the counts are shown for until it is moved.
        total: how many pairs there are.
        scores: what the bars are, in words.
        on_release: called with the new threshold, before the page is drawn again.
    """
    steps = steps.drop_duplicates("threshold").sort_values("threshold", ignore_index=True)
    start = int(steps["threshold"].sub(value).abs().to_numpy().argmin())

    def released() -> None:
        threshold = st.session_state[key]["threshold"]
        if threshold is not None:
            on_release(float(threshold))

    _drag()(
        key=key,
        data={
            **histogram.to_dict(),
            "thresholds": steps["threshold"].tolist(),
            "places": [histogram.place(threshold) for threshold in steps["threshold"]],
            "pairs": steps["pairs"].tolist(),
            "samples": steps["samples"].tolist(),
            "start": start,
            "total": total,
            "labels": {name: template(f"drag.{name}") for name in ("name", "picture", "count", "zeros")}
            | {"hint": f"{scores} {t('drag.hint')}"},
        },
        on_threshold_change=released,
    )


def document(language: str) -> None:
    """The browser's document is in this language, and choices on a page are no steps in its history."""
    _document()(key="document", data={"language": language}, height=1)


@cache
def _drag() -> Callable[..., Any]:
    return st.components.v2.component(
        "threshold_drag", html=asset("threshold_drag.html"), css=asset("threshold_drag.css"), js=asset("threshold_drag.js")
    )


@cache
def _document() -> Callable[..., Any]:
    return st.components.v2.component("document", js=asset("document.js"))


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
