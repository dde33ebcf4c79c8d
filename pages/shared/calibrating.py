"""Pieces of the page that plants errors and asks every score for them: what is planted, and which score found it."""

import json
from typing import Final

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import session, verifying, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.errors import InputError, JobFailedError
from tracin_core.records.calibrations import NOISES, SEEDS, Calibration, calibrations, found_by_share, start_calibration
from tracin_core.records.runs import Run

CURVES: Final = 4  # lines in one chart, chance not counted
LOOKED: Final = tuple(np.linspace(0.05, 1.0, 20).round(2).tolist())
SHARES: Final = {"10": 0.1, "5": 0.05}  # per cent
INTERVALS: Final = ("average_precision", "auroc", "recovery_10", "recovery_20", "recovery_30", "above_random")
PLAIN: Final = ("ties", "zeros")
FEWEST: Final = 2  # seeds, whose intervals are the mean ± 9 deviations: hardly a score passes


# ---- what is asked ----------------------------------------------------------------------------------------------------------------


def start(run: Run) -> None:
    """What is planted, how often, and how long that takes; and the button."""
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        offered = NOISES if run.task == "ranking" else NOISES[:1]
        noise = widgets.choose_code(f"calibrate.noise.{run.task}", offered, key="noise")
        share = SHARES[widgets.choose_code("calibrate.share", tuple(SHARES), key="planted")]
        told = t("calibrate.seeds.help")
        seeds = int(
            st.number_input(t("calibrate.seeds"), FEWEST, 20, width=150, help=told, **verifying.number("seeds", SEEDS, FEWEST, 20))
        )
    st.markdown(f"{t('calibrate.count', n=seeds)} {estimate(run, seeds)}")
    if run.precondition != "none":
        st.info(t("calibrate.plain"), icon=":material/info:")
    if st.button(t("calibrate.start"), type="primary", icon=":material/straighten:", key="start_calibration"):
        start_calibration(session.workspace(), run, noise=next(one for one in NOISES if one == noise), share=share, seeds=seeds)
        st.rerun()


def estimate(run: Run, seeds: int) -> str:
    """How long so many seeds take, by an earlier calibration; else how long their trainings take, which are only a part of it."""
    for job in session.workspace().jobs(limit=200):
        if job.kind == "calibration" and job.request.get("run") == run.id and (seconds := verifying.took(job)) is not None:
            return t("calibrate.estimate", duration=widgets.duration(seeds * seconds / len(job.request["seeds"])))
    one = verifying.seconds_of_one(run)
    return t("verify.unknown") if one is None else t("calibrate.at_least", duration=widgets.duration(seeds * one))


def last_failure(run: Run) -> None:
    """Why the run's newest calibration did not end well, where it did not."""
    jobs = session.workspace().jobs(limit=200)
    newest = next((job for job in jobs if job.kind == "calibration" and job.request.get("run") == run.id), None)
    if newest is not None and newest.error:
        widgets.failure(JobFailedError(f"{widgets.job_title(newest)}: {newest.error}"))


# ---- what came of it --------------------------------------------------------------------------------------------------------------


def results(run: Run) -> None:
    """Every finished calibration of the run's data, model and task, newest first."""
    found = calibrations(session.workspace(), run)
    if not found:
        st.markdown(t("calibrate.none"))
    for result in found:
        with st.container(border=True):
            one_result(run, result)


def one_result(run: Run, result: Calibration) -> None:
    """Which score to look at, the intervals that this rests on, and what could not be judged."""
    when = f"{pd.Timestamp(result.created, unit='s'):%Y-%m-%d %H:%M} UTC"
    title = t(f"calibrate.result.{result.noise}", share=f"{result.share:.0%}", n=len(result.seeds), when=when)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{title}**" + (f" · {plain(result.who)}" if result.who else ""), width="content")
        if result.simulated:
            st.badge(t("run.simulated"), icon=":material/science:", color="orange", help=t("run.simulated.help"))
    if result.digest != run.digest:
        st.warning(t("calibrate.stale", run=result.run_id), icon=":material/history:")
    recommendation = result.recommendation()
    (st.success if recommendation.score else st.warning)(sentence(result), icon=":material/straighten:")
    summary = result.summary()
    rows = pd.DataFrame(
        {
            "name": [widgets.score_label(score) for score in summary["score"]],
            "mean": summary["average_precision"],
            "low": summary["average_precision_low"],
            "high": summary["average_precision_high"],
            "chosen": summary["score"] == recommendation.score,
        }
    )
    chance = result.figure("random", "average_precision").mean
    figure = charts.intervals_figure(
        rows, x=t("calibrate.column.average_precision"), chance=chance, guessing=t("calibrate.curves.chance")
    )
    widgets.chart(figure, key=f"calibrate.{result.number}", alt=sentence(result))
    st.dataframe(table(summary), hide_index=True, column_config=columns())
    curves(result, [str(score) for score in summary["score"]], recommendation.score)
    st.markdown(f":small[{t('calibrate.scope', seeds=len(result.seeds), unit=t(f'calibrate.unit.{result.unit}'))}]")
    st.markdown(f":small[{learnt(result)}]")
    if result.assumed:
        st.markdown(f":small[{t('verify.assumed', names=plain(', '.join(result.assumed)))}]")
    if result.missing:
        with st.expander(t("calibrate.missing", n=len(result.missing))):
            for score, why in result.missing.items():
                st.markdown(f"**{widgets.score_label(score)}**: {plain(why)}")
    content = json.dumps(result.to_dict(), indent=2, default=str)
    st.download_button(
        t("calibrate.download"), content, f"calibration_{result.number}.json", "application/json",
        key=f"download.{result.number}", on_click="ignore", icon=":material/download:", help=t("calibrate.download.help"),
    )  # fmt: skip


def curves(result: Calibration, ranked: list[str], chosen: str | None) -> None:
    """How early some scores list the errors: what is recommended, the pages' own score, and the best of the rest."""
    judged = [score for score in ranked if score != "random"]
    asked = st.multiselect(
        t("calibrate.curves"),
        judged,
        default=[score for score in dict.fromkeys([chosen, "self_influence", "mean_loss", *judged]) if score in judged][:CURVES],
        format_func=widgets.score_label,
        max_selections=2 * CURVES,
        key=f"curves.{result.number}",
    )
    try:
        drawn = counted(session.workspace_path(), result.number, tuple(asked), result).rename(columns=widgets.score_label)
    except InputError as failure:
        widgets.failure(failure)
        return
    words = {name: t(f"calibrate.curves.{name}") for name in ("x", "y", "chance")}
    widgets.chart(charts.recovery_figure(drawn, **words), key=f"calibrate.curves.{result.number}", alt=t("calibrate.curves.alt"))


@st.cache_data(max_entries=32, show_spinner=False)
def counted(workspace: str, number: str, asked: tuple[str, ...], _result: Calibration) -> pd.DataFrame:
    """`found_by_share`, counted once."""
    return found_by_share(session.workspace(), _result, asked, LOOKED)


def sentence(result: Calibration) -> str:
    """What to look at on this data, or that nothing here is reliable."""
    found = result.recommendation()
    if found.score is None:
        few = f" {t('calibrate.verdict.few')}" if len(result.seeds) == FEWEST else ""
        return t("calibrate.verdict.nothing", n=found.judged) + few
    precision, first = (result.shown(found.score, name) for name in ("average_precision", "recovery_10"))
    told = t(
        "calibrate.verdict.score",
        score=widgets.score_label(found.score),
        precision=f"{precision.mean:.2f}",
        low=f"{precision.low:.2f}",
        high=f"{precision.high:.2f}",
        chance=f"{result.figure('random', 'average_precision').mean:.2f}",
        found=f"{first.mean:.0%}",
    )
    if found.best not in (None, found.score):
        told += " " + t("calibrate.verdict.tied", best=widgets.score_label(str(found.best)))
    return told


def learnt(result: Calibration) -> str:
    """How well the models that learnt the errors do on the validation side, which has none."""
    measure = next(name for name in result.trainings if name.startswith("validation_"))
    values = result.trainings[measure]
    told = [f"{value:.1%}" if measure.endswith("accuracy") else f"{value:.3g}" for value in (values.min(), values.max())]
    wrong = f"{int(result.trainings['wrong'].min()):,}"
    return t(f"calibrate.learnt.{measure.removeprefix('validation_')}", low=told[0], high=told[1], wrong=wrong)


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as people read it: means with their intervals."""
    shown = {"score": [widgets.score_label(score) for score in summary["score"]]}
    shown["reliable"] = [t(f"calibrate.reliable.{'yes' if reliable else 'no'}") for reliable in summary["reliable"]]
    for name in INTERVALS:
        ends = zip(summary[name], summary[f"{name}_low"], summary[f"{name}_high"], strict=True)
        shown[name] = [f"{mean:.3f} ({low:.3f} – {high:.3f})" for mean, low, high in ends]
    for name in PLAIN:
        shown[name] = [f"{value:.0%}" for value in summary[name]]
    return pd.DataFrame(shown)


def columns() -> dict[str, object]:
    """Names of the table's columns, with what they mean."""
    named = ("score", "reliable", *INTERVALS, *PLAIN)
    return {name: st.column_config.Column(t(f"calibrate.column.{name}"), help=t(f"calibrate.column.{name}.help")) for name in named}
