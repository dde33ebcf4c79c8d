"""Pieces of the page that trains: what is learnt from what, by which settings, and what the trainings reached."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import choosing, computing, frame, session, uploads, verifying, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.recipe import Recipe
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.trainings import left_out_before, lines_listed, own_training, saved_epochs, settings_of
from tracin_core.scores.actions import weights_by
from tracin_core.scores.selection import SuspectScore
from tracin_core.training_settings import SampleSettings, Schedule, TrainingSettings, settings_of_loss

MOST: Final = 200  # jobs that are looked through
EVERYTHING, FILE = "everything", "file"  # beside the names of lists
SIDES: Final = ("train", "validation", "test")
SHOWN: Final = ("epochs", "learning_rate", "schedule", "momentum", "batch_pairs", "batch_size", "seed")
RANGES: Final[dict[str, tuple[float, float, float]]] = {  # setting -> least, most, step
    "epochs": (1, 100_000, 1), "learning_rate": (1e-8, 1e3, 0.001), "momentum": (0.0, 0.999, 0.05), "batch_pairs": (1, 10**6, 16),
    "batch_size": (1, 10**6, 16), "seed": (0, 2**31, 1), "margin": (0.0, 1e6, 1.0), "ghm_bins": (1, 1000, 1),
    "ghm_alpha": (0.0, 10.0, 0.05),
    "smoothing": (0.0, 0.999, 0.05), "gamma": (0.0, 100.0, 0.5), "q": (0.001, 1.0, 0.1), "delta": (1e-6, 1e9, 0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is trained, as chosen so far.

    Attributes:
        sections: of the recipe.
        usual: settings of the run's training, which are the defaults here; empty for other data.
        assumed: those of the run's that are not known, or not to be had here.
    """

    sections: dict[str, Any]
    usual: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    run: Run | None = None

    @property
    def task(self) -> str:
        return str(self.sections["task"]["kind"])

    @property
    def origin(self) -> str:
        """Tells choices apart whose defaults differ."""
        return self.task if self.run is None else self.run.id


# ---- what is trained on -----------------------------------------------------------------------------------------------------------


def choose() -> Asked | None:
    """The data, model and task of the run in view, or others; None, said, where there are none."""
    run = frame.run_in_view()
    if run is not None and run.kind != "scores" and widgets.choose_code("train.from", ("run", "data"), key="source") == "run":
        return as_the_run(run)
    uploads.offer("train", on_new=choosing.places.clear)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader(t("compute.data"))
        data = choosing.choose_data()
        if data is None:
            return None
        task = choosing.choose_kind(data)
        split = choosing.choose_split(data)
    with right:
        st.subheader(t("train.model"))
        model = choosing.choose_model(data, task)
    return None if model is None else Asked({"data": data.section, "split": split, "model": model, "task": {"kind": task}})


def as_the_run(run: Run) -> Asked:
    """All that the run's recipe says, and the settings of its training."""
    settings, assumed = settings_of(run)
    own = own_training(run)
    known = {**run.training_arguments, **({} if own is None else own["settings"])}
    settings |= {"seed": known["seed"]} if isinstance(known.get("seed"), int) else {}
    sides = {side: len(run.splits.get(side, ())) for side in SIDES}
    st.markdown(t("train.as_run", data=plain(run.recipe.data.title), model=run.recipe.model.kind, **sides))
    if assumed:
        st.markdown(f":small[{t('verify.assumed', names=plain(', '.join(assumed)))}]")
    sections = run.recipe.to_dict()
    task = {name: value for name, value in sections["task"].items() if name not in settings}
    return Asked({**sections, "task": task}, settings, tuple(assumed), run)


def choose_examples(run: Run) -> dict[str, Any] | None:
    """What of the run's training side is left out, and what counts less: keyword arguments of `Workspace.start_training`.

    None, said, where a text file is asked for and there is none.
    """
    written = session.workspace().exported_exclusions(run)
    lists = {str(row["text"].name): row for _, row in written.iterrows()}
    labels = {EVERYTHING: t("train.without.none"), FILE: t("train.without.file")}
    labels |= {name: verifying.list_label(row) for name, row in lists.items()}
    told: dict[str, Any] = {}
    chosen = str(
        st.selectbox(
            t("train.without"),
            [EVERYTHING, *lists, FILE],
            format_func=labels.__getitem__,
            width=420,
            **session.linked("without", EVERYTHING, valid=labels),
        )
    )
    if chosen == FILE:
        uploads.offer("train", on_new=choosing.places.clear)
        file = choosing.choose_place("list", key="file")
        if file is None:
            return None
        st.markdown(f":small[{t('train.listed', n=lines_listed(file))}]")
        told["exclusions_file"] = file
    elif chosen != EVERYTHING:
        told["exclusions_file"] = Path(lists[chosen]["text"])
    earlier = sorted(left_out_before(run))
    if earlier and st.checkbox(t("train.again", n=len(earlier)), **session.linked("again", True)):
        told["without"] = earlier
    by = widgets.choose_code("train.weigh", ("none", *get_args(SuspectScore)), key="weigh")
    if by != "none":
        st.markdown(f":small[{weights_in_words(run, cast(SuspectScore, by))}]")
        told["weighting"] = (run.id, by)
    return told


def weights_in_words(run: Run, by: SuspectScore) -> str:
    """How many examples count less in the loss, and how much less.

    Raises:
        ViewError: no weight follows from this score.
    """
    if by == "self_influence":
        widgets.require(run, by)
    weights = weights_by(session.view(run).suspect_scores(by))
    return t("train.weigh.words", n=int(np.sum(weights < 1)), total=len(weights), mean=weights.mean(), least=weights.min())


# ---- how --------------------------------------------------------------------------------------------------------------------------


def choose_settings(asked: Asked) -> dict[str, Any]:
    """Loss, epochs, learning rate and the others; the defaults are those of the run's training, else this product's own."""
    offered = choosing.LOSSES[asked.task]
    loss = asked.usual.get("loss", offered[0])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        picker = session.linked(f"loss.{asked.origin}", loss, valid=offered, quiet=True)
        loss = st.selectbox(t("compute.loss"), offered, width=260, **picker)
        usual = defaults(asked, str(loss))
        chosen = {name: number(asked, name, usual[name]) for name in settings_of_loss(str(loss))}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        batch = "batch_pairs" if asked.task == "ranking" else "batch_size"
        names = ("epochs", "learning_rate", "momentum", batch, "seed")
        chosen |= {name: number(asked, name, usual[name]) for name in names}
        schedules = get_args(Schedule)
        schedule = st.segmented_control(
            t("train.schedule"),
            schedules,
            format_func=lambda name: t(f"train.schedule.{name}"),
            required=True,
            help=t("train.schedule.help"),
            **session.linked(f"schedule.{asked.origin}", usual["schedule"], valid=schedules, quiet=True),
        )
    if asked.run is not None and chosen["epochs"] == asked.usual["epochs"]:
        chosen["save_epochs"] = saved_epochs(asked.run, chosen["epochs"])  # so that both runs are read at the same checkpoints
    return {**chosen, "loss": loss, "schedule": schedule}


def defaults(asked: Asked, loss: str) -> dict[str, Any]:
    """What the settings are where nobody changes them."""
    own = TrainingSettings() if asked.task == "ranking" else SampleSettings(loss=cast(Any, loss))
    return {**{each.name: getattr(own, each.name) for each in fields(own)}, **asked.usual}


def number(asked: Asked, name: str, usual: float) -> float:
    """A setting that is a number; beyond its range where the run's own is."""
    least, most, step = RANGES[name]
    usual = type(least)(usual)  # a checkpoint may record 0 of what is no whole number
    least, most = min(least, usual), max(most, usual)
    return st.number_input(
        t(f"train.{name}"),
        min_value=least,
        max_value=most,
        step=step,
        format="%d" if isinstance(least, int) else "%g",
        help=t(f"train.{name}.help"),
        width=150,
        **session.linked(f"{name}.{asked.origin}", usual, valid=lambda value: least <= value <= most, quiet=True),
    )


def start(asked: Asked) -> None:
    """What is left out, the settings, how long it takes; and the button."""
    examples: dict[str, Any] | None = {}
    if asked.run is not None:
        st.subheader(t("train.examples"))
        examples = choose_examples(asked.run)
    if examples is None:
        return
    st.subheader(t("train.settings"))
    settings = choose_settings(asked)
    told = t("train.name.placeholder")
    picker = session.linked(f"name.{asked.origin}", "")
    name = st.text_input(t("train.name"), placeholder=told, help=t("train.name.help"), width=300, **picker)
    st.markdown(cost(asked, int(settings["epochs"])))
    if st.button(t("train.start"), type="primary", icon=":material/model_training:", key="start_training"):
        session.workspace().start_training(recipe_of(asked, settings), settings=settings, name=name.strip(), **examples)
        st.rerun()


def recipe_of(asked: Asked, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of the training, which is that of its analysis but for the checkpoints."""
    task = {**asked.sections["task"], **{each: settings[each] for each in ("loss", *settings_of_loss(settings["loss"]))}}
    sections = {"checkpoints": {"folder": session.workspace().root / "trainings"}, **asked.sections, "task": task}
    if settings["loss"] == "binary_cross_entropy":
        sections["model"] = {**sections["model"], "outputs": 1}
    return Recipe.from_dict(sections)


def cost(asked: Asked, epochs: int) -> str:
    """How long so many epochs take, by the run's own training."""
    one = None if asked.run is None else verifying.seconds_of_one(asked.run)
    if one is None:
        return t("train.unknown")
    return t("train.estimate", duration=widgets.duration(one * epochs / max(asked.usual["epochs"], 1)))


# ---- what came of it --------------------------------------------------------------------------------------------------------------


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
    history = pd.DataFrame(told["history"])
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
