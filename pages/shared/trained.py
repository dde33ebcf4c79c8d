"""Pieces of the page that trains: what is under way, what every training reached, and the way to its scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import computing, frame, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.recipe import Recipe
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.trainings import own_training
from tracin_core.training_settings import settings_of_loss

MOST: Final = 200  # jobs that are looked through
SIDES: Final = ("train", "validation", "test")
SHOWN: Final = ("epochs", "learning_rate", "schedule", "momentum", "batch_pairs", "batch_size", "seed")


def trainings() -> list[Job]:
    """Newest first, whatever became of them."""
    return [job for job in session.workspace().jobs(limit=MOST) if job.kind == "training"]


def under_way() -> None:
    """Trainings that are not done, with progress, cancel, resume and log; moves while one is live."""
    st.fragment(_under_way, run_every=1.0 if session.live_jobs() else None)()


def _under_way() -> None:
    """What is live, and what ended badly since the last one that ended well; what did before that is put away."""
    known = trainings()
    done = next((place for place, job in enumerate(known) if job.state == "done"), len(known))
    for job in [job for place, job in enumerate(known) if job.is_live or place < done][: computing.SHOWN_JOBS]:
        one_training(job)
    before = [job for job in known[done:] if not job.is_live and job.state != "done"][: computing.SHOWN_JOBS]
    if before:
        with st.expander(t("train.ended_before", n=len(before)), icon=":material/history:"):
            for job in before:
                one_training(job)


def one_training(job: Job) -> None:
    """A training that is not done: by which settings, and how it stands."""
    with st.container(border=True):
        told = settings_in_words({**job.request["recipe"]["task"], **job.request["settings"]})
        by = (job.request.get("weighting") or {}).get("by")
        computing.one_job(job, [told, *([t(f"train.weigh.{by}")] if by else [])])


def results() -> None:
    """What every finished training reached, beside the run in view; and one of them looked at."""
    known = trainings()
    done = {job.id: job for job in known if job.state == "done" and job.result}
    if not known:
        st.markdown(t("train.none"))
    if not done:
        return
    found = table(frame.run_in_view(), [job.result for job in done.values() if job.result])
    st.dataframe(found, hide_index=True, column_config=columns(), height=min(38 + 35 * len(found), 320), placeholder="–")
    with st.container(border=True):
        one_result(chosen_of(done))
    st.markdown(f":small[{t('train.caution')}]")
    frame.page_link("verify", t("train.to_verify"), icon=":material/fact_check:")


def chosen_of(done: dict[str, Job]) -> Job:
    """The training to look at: the newest, whichever that is, unless another was chosen."""
    labels = {"": t("train.newest")} | {number: job.title for number, job in done.items()}
    picker = session.linked("training", "", valid=labels)
    chosen = st.selectbox(t("train.look_at"), list(labels), format_func=labels.__getitem__, width=560, **picker)
    return done[str(chosen) or next(iter(done))]


def row(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """A training in the table."""
    settings, left = told["settings"], told.get("exclusions") or {}
    scores = {f"{side}_{what}": told.get(f"{side}_{what}") for what in ("accuracy", "error") for side in ("validation", "test")}
    chosen = {each: settings.get(each) for each in ("loss", "epochs", "learning_rate", "seed")}
    return {
        "name": name,
        **scores,
        "samples": left.get("samples"),
        "pairs": left.get("pairs"),
        "by": t(f"train.weigh.{left['weighted_by']}") if left.get("weighted_by") else "",
        **chosen,
    }


def table(run: Run | None, trained: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per training, that of the run in view first; without columns that say nothing of any of them."""
    own = None if run is None or run.kind == "scores" else own_training(run)
    rows = []
    if run is not None and own is not None:
        folder = run.recipe.checkpoints.folder
        rows.append(row(t("train.run_in_view", name=folder.name), own))
        trained = [told for told in trained if Path(told["folder"]).absolute() != folder.absolute()]
    rows += [row(Path(told["folder"]).name, told) for told in trained]
    found = pd.DataFrame(rows)
    empty = {"samples": 0, "pairs": 0, "by": ""}  # where nothing is left out or weighed; an accuracy or a seed of 0 is one
    return found.loc[:, [bool((found[name].notna() & (found[name] != empty.get(name))).any()) for name in found]]


def columns() -> dict[str, Any]:
    """The table's column titles."""
    named: dict[str, Any] = {
        name: t(f"train.column.{name}") for name in ("samples", "pairs", "by", "validation_error", "test_error")
    }
    named["name"] = st.column_config.TextColumn(t("train.column.name"), width=340)
    named["by"] = st.column_config.TextColumn(named["by"], width=140)
    named |= {name: t(f"train.{name}") for name in ("epochs", "learning_rate", "seed")} | {"loss": t("compute.loss")}
    for side in ("validation", "test"):
        named[f"{side}_accuracy"] = st.column_config.NumberColumn(t(f"train.column.{side}_accuracy"), format="percent")
    return named


def one_result(job: Job) -> None:
    """What one training was and reached, epoch by epoch; and the way to its scores."""
    told = job.result or {}
    st.markdown(f"**{plain(job.title)}**")
    if job.request["recipe"].get("simulated"):
        st.badge(t("run.simulated"), icon=":material/science:", color="orange", help=t("run.simulated.help"))
    st.markdown(in_words(told))
    left_out(told.get("exclusions") or {})
    if not learnt(told["history"], told["split"].get("validation", 0)):
        st.warning(t("train.not_learnt"), icon=":material/casino:")
    curves(pd.DataFrame(told["history"]))
    way_on(job, told)


def curves(history: pd.DataFrame) -> None:
    """Loss and score of every side, epoch by epoch."""
    what = "error" if "train_error" in history else "accuracy"
    for measure, place in zip(("loss", what), st.columns(2, gap="large"), strict=True):
        lines = {t(f"train.side.{side}"): history[f"{side}_{measure}"] for side in SIDES if f"{side}_{measure}" in history}
        figure = charts.lines_figure(
            {name: values.to_numpy(dtype=float) for name, values in lines.items()},
            [str(int(epoch)) for epoch in history["epoch"]],
            x=t("train.epoch"),
            y=t(f"train.measure.{measure}"),
            percent=measure == "accuracy",
        )
        with place:
            widgets.chart(figure, key=f"train.{measure}", alt=course_in_words(lines, measure))


def way_on(job: Job, told: Mapping[str, Any]) -> None:
    """The analysis of a training: to be started, under way, or its run; and the record as a file."""
    analysis = analysis_of(job)
    if analysis is not None and analysis.state != "done":
        st.fragment(_analysis, run_every=1.0 if analysis.is_live else None)(analysis.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        if analysis is not None and analysis.state == "done":
            frame.page_link("overview", t("job.open"), icon=":material/arrow_forward:", run=str(analysis.run_id))
        elif analysis is None and st.button(t("train.analyse"), icon=":material/play_arrow:", key="analyse"):
            computing.begin(computing.local(Recipe.from_toml(Path(told["recipe"]))))
        content = json.dumps({**told, "simulated": bool(job.request["recipe"].get("simulated"))}, indent=2)
        st.download_button(
            t("train.download"), content, f"training_{job.title}.json", icon=":material/download:", on_click="ignore"
        )


def _analysis(number: str) -> None:
    computing.one_job(session.workspace().job(number))


def analysis_of(training: Job) -> Job | None:
    """The newest analysis of what this training saved, unless its run is no longer here."""
    folder, here = (training.result or {})["folder"], set(session.finished_runs()["id"])
    for job in session.workspace().jobs(limit=MOST):
        if job.kind == "analysis" and job.request["recipe"]["checkpoints"]["folder"] == folder:
            return job if job.state != "done" or job.run_id in here else None
    return None


def learnt(history: list[dict[str, float]], samples: int) -> bool:
    """Whether the validation side's loss fell, or its accuracy rose by more than two standard errors of a share of so many samples.

    Where neither is measured, they may have.
    """
    first, last = history[0], history[-1]
    if "validation_loss" not in first:
        return True
    fell = last["validation_loss"] < first["validation_loss"]
    rose = last.get("validation_accuracy", 0.0) - first.get("validation_accuracy", 0.0)
    return bool(fell or rose > 2 * np.sqrt(0.25 / max(samples, 1)))


def in_words(told: Mapping[str, Any]) -> str:
    """What was reached on the sides that were not trained on, and by which settings."""
    what = "error" if any(name.endswith("_error") for name in told) else "accuracy"
    reached = {
        side: widgets.reached(told[f"{side}_{what}"], number=what == "error")
        for side in ("validation", "test")
        if told.get(f"{side}_{what}") is not None
    }
    trained = "train.trained_on.pairs" if told.get("train_pairs") else "train.trained_on"
    return "  \n".join(
        [
            " · ".join(f"{t(f'train.column.{side}_{what}')} **{value}**" for side, value in reached.items()),
            t(trained, n=told["train_samples"], pairs=told.get("train_pairs"), duration=widgets.duration(told["seconds"])),
            f":small[{settings_in_words(told['settings'])}]",
        ]
    )


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """By which loss and settings something is trained; what nobody chose is left out."""
    names = ["loss", *settings_of_loss(str(settings.get("loss"))), *SHOWN]
    return " · ".join(f"{setting_name(name)} {setting_value(name, settings[name])}" for name in names if name in settings)


def setting_name(name: str) -> str:
    return t("compute.loss") if name == "loss" else t(f"train.{name}")


def setting_value(name: str, value: Any) -> str:
    if name == "schedule":
        return t(f"train.schedule.{value}")
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def left_out(told: Mapping[str, Any]) -> None:
    """What the training did without, or with less weight; and what of its list named nothing."""
    if told.get("samples") or told.get("pairs"):
        file = plain(told["file"] or t("train.without.earlier"))
        st.markdown(t("train.left_out", samples=told["samples"], pairs=told["pairs"], file=file))
    for kind in ("elsewhere", "unmatched"):
        lines = told.get(kind) or []
        if lines:
            st.warning(t(f"train.{kind}", n=len(lines), lines=plain(", ".join(lines[:3]))), icon=":material/rule:")
    if told.get("weighted_by"):
        by = t(f"train.weigh.{told['weighted_by']}")
        st.markdown(t("train.weighted", n=told["weighted"], by=by, run=told["weighting_run"]))


def course_in_words(lines: Mapping[str, pd.Series], measure: str) -> str:
    """A curve's takeaway: from where to where."""
    told = []
    for name, values in lines.items():
        first, last = (widgets.reached(value, number=measure != "accuracy") for value in values.iloc[[0, -1]])
        told.append(f"{name}: {first} → {last}")
    return f"{t(f'train.measure.{measure}')}. {'; '.join(told)}"
