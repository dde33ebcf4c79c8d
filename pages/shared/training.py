"""Pieces of the page that trains: what is learnt from what, and by which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
import streamlit as st

from pages.shared import choosing, frame, session, uploads, verifying, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core.recipe import Recipe
from tracin_core.records.runs import Run
from tracin_core.records.trainings import left_out_before, lines_listed, own_training, saved_epochs, settings_of
from tracin_core.scores.actions import weights_by
from tracin_core.scores.selection import SuspectScore
from tracin_core.training_settings import SampleSettings, Schedule, TrainingSettings, settings_of_loss

EVERYTHING, FILE = "everything", "file"  # beside the names of lists
SIDES: Final = ("train", "validation", "test")
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
    """

    sections: dict[str, Any]
    usual: dict[str, Any] = field(default_factory=dict)
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
    return Asked({**sections, "task": task}, settings, run)


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
