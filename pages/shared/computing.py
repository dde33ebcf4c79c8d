"""Pieces of the compute page: what the checkpoint files are, the start, and the jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import streamlit as st

from pages.shared import choosing, frame, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core.errors import RecipeError
from tracin_core.recipe import MODEL_FORMS, Recipe
from tracin_core.records.jobs import Job

SHOWN_JOBS: Final = 8
RESULTS: Final = {"calibration": "calibrate", "retraining": "verify", "faithfulness": "verify"}  # where a job's result is shown
OF_ADAM: Final = ("adam", "adam_full")
RECIPE: Final = "analysis.toml"  # beside the checkpoints of this product's own training
FILE_COLUMNS: Final = (
    "file",
    "accepted",
    "epoch",
    "learning_rate",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "reason",
)


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints as chosen, and the network they belong to."""

    folder: Path
    prefix: str
    model: dict[str, Any]

    @property
    def request(self) -> dict[str, Any]:
        model = MODEL_FORMS.validate_python(self.model)
        return {"folder": str(self.folder), "prefix": self.prefix, "model": model.model_dump(mode="json")}


def choose_checkpoints(data: choosing.Data | None, task: str) -> Checkpoints | None:
    """Folder, prefix of the file names, and the network they belong to."""
    folder = choosing.choose_place("checkpoints", key="folder")
    if folder is None:
        frame.page_link("train", t("compute.to_train"), icon=":material/model_training:")
        return None
    prefix = st.text_input(
        t("compute.prefix"), help=t("compute.prefix.help"), width=200, **session.linked("prefix", "model_epoch_")
    )
    model = None if data is None else choosing.choose_model(data, task)
    return None if model is None else Checkpoints(folder, prefix, model)


# ---- what the files are ---------------------------------------------------------------------------------------------------------


def inspection(checkpoints: Checkpoints) -> None:
    """Looks into the files on request; shows what the newest look found."""
    if st.button(t("compute.inspect"), icon=":material/search:", help=t("compute.inspect.help"), key="inspect"):
        model = MODEL_FORMS.validate_python(checkpoints.model)
        session.workspace().start_inspection(checkpoints.folder, checkpoints.prefix, model)
        st.rerun()
    files = files_seen(checkpoints)
    if files:
        files_found(pd.DataFrame(files))


def files_seen(checkpoints: Checkpoints) -> list[dict[str, Any]]:
    """The files as the newest look found them; none before the first look."""
    looks = [job for job in session.workspace().jobs(limit=50) if job.kind == "inspection" and job.request == checkpoints.request]
    return list(looks[0].result["files"]) if looks and looks[0].result else []


def files_found(files: pd.DataFrame) -> None:
    """One row per checkpoint file, and a sentence on the refused ones."""
    shown = files.reindex(columns=list(FILE_COLUMNS))
    labels: dict[str, Any] = {name: t(f"file.{name}") for name in FILE_COLUMNS}
    labels["validation_accuracy"] = st.column_config.NumberColumn(labels["validation_accuracy"], format="percent")
    refused = int((~shown["accepted"].astype(bool)).sum())
    columns = FILE_COLUMNS if refused else FILE_COLUMNS[:-1]
    st.dataframe(shown[list(columns)], hide_index=True, column_config=labels, height=min(38 + 35 * len(shown), 400))
    if refused:
        st.warning(t("compute.refused", n=refused, total=len(shown)), icon=":material/gpp_maybe:")


# ---- start ----------------------------------------------------------------------------------------------------------------------


def start(checkpoints: Checkpoints, data: choosing.Data, task: dict[str, Any]) -> None:
    """Split and name, each with what it defaults to; the button starts the analysis in the background."""
    told = [checkpoints.folder.name, *(f"{name} {value}" for name, value in task.items() if value and name in ("loss", "margin"))]
    name = st.text_input(t("compute.name"), " ".join(told), width=300, key=f"name.{told}")  # the default follows what was chosen
    split = choosing.choose_split(data)
    engine = choose_formula(checkpoints, task.get("kind", ""))
    if not st.button(t("compute.go"), type="primary", icon=":material/play_arrow:", key="start"):
        return
    settings = {
        "name": name,
        "model": checkpoints.model,
        "data": data.section,
        "split": split,
        "task": task,
        "checkpoints": {"folder": checkpoints.folder, "prefix": checkpoints.prefix},
        "engine": engine,
    }
    begin(Recipe.from_dict(settings))


def choose_formula(checkpoints: Checkpoints, task: str) -> dict[str, Any]:
    """By which formula; Adam's only where a look found its second moment in every checkpoint after epoch 0, EKFAC's not for pairs."""
    files = [file for file in files_seen(checkpoints) if file["accepted"] and file["epoch"]]
    of_adam = OF_ADAM if files and all(file.get("second_moment") for file in files) else ()
    forms = ("none", *of_adam, *(() if task in ("", "ranking") else ("ekfac",)))
    if forms == ("none",):
        return {}
    with st.container(horizontal=True):
        precondition = st.selectbox(
            t("compute.precondition"),
            forms,
            format_func=lambda form: t(f"compute.precondition.{form}"),
            help=t("compute.precondition.help"),
            width=420,
            key="precondition",
        )
        if precondition != "ekfac":
            return {"precondition": precondition}
        label, told = t("compute.damping"), t("compute.damping.help")
        damping = st.number_input(label, min_value=1e-6, value=1.0, format="%g", help=told, width=150, key="damping")
    return {"precondition": precondition, "damping": damping}


def begin(recipe: Recipe) -> None:
    """The analysis is on its way, or was there already."""
    started = session.workspace().compute(recipe, wait=False)
    if isinstance(started, Job):
        st.rerun()
    st.success(t("compute.cached"), icon=":material/bolt:")
    frame.page_link("overview", t("job.open"), icon=":material/arrow_forward:", run=started.id)


def offer_recipe() -> None:
    """Folders that a training wrote with its recipe are analysed by it at one click."""
    place = session.workspace()
    known = [
        folder for folder in choosing.places(session.workspace_path(), "checkpoints") if (place.resolve(folder) / RECIPE).is_file()
    ]
    if not known:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(t("compute.recipe"), known, width=420, help=t("compute.recipe.help"), key="recipe")
        if st.button(t("compute.recipe.go"), icon=":material/play_arrow:", key="start_recipe"):
            begin(allowed(Recipe.from_toml(place.resolve(str(chosen)) / RECIPE)))


def allowed(recipe: Recipe) -> Recipe:
    """The recipe, if all that it names may be read by whoever uses this server, and it computes here.

    Raises:
        OutsideRootsError: it names a file or folder outside the roots.
        RecipeError: it asks for a cluster, which only whoever runs the server may.
    """
    place = session.workspace()
    ids = (recipe.split.train_ids, recipe.split.validation_ids, recipe.split.test_ids)
    named = [
        recipe.checkpoints.folder,
        *(path for path in ids if path),
        *([recipe.data.place] if recipe.data.kind != "plugin" else []),
    ]
    for path in named:
        place.folder_id(path)
    return local(recipe)


def local(recipe: Recipe) -> Recipe:
    """The recipe, if it computes here.

    Raises:
        RecipeError: it asks for a cluster, which only whoever runs the server may.
    """
    if recipe.engine.executor != "local":
        raise RecipeError(
            f"The recipe '{recipe.name}' asks for a cluster ({recipe.engine.executor}), which a browser cannot; start it on the command "
            f"line with compute-influence --recipe."
        )
    return recipe


# ---- jobs -----------------------------------------------------------------------------------------------------------------------


def jobs() -> None:
    """The newest jobs with progress, cancel, resume and log; moves while one is live."""
    st.fragment(_jobs, run_every=1.0 if session.live_jobs() else None)()


def _jobs() -> None:
    newest = session.workspace().jobs(limit=SHOWN_JOBS + 1)
    if not newest:
        st.markdown(t("compute.no_jobs"))
    for job in newest[:SHOWN_JOBS]:
        with st.container(border=True):
            one_job(job)
    if len(newest) > SHOWN_JOBS:
        st.markdown(f":small[{t('compute.newest_jobs', n=SHOWN_JOBS)}]")


def one_job(job: Job, more: Sequence[str] = ()) -> None:
    """One job: what it is, how it stands, and what can be done about it; `more` to say of it, as Markdown."""
    place = session.workspace()
    widgets.progress(job)
    told = [
        t(f"job.kind.{job.kind}"),
        f"{pd.Timestamp(job.created, unit='s'):%Y-%m-%d %H:%M} UTC",
        *([plain(job.who)] if job.who else []),
    ]
    st.markdown(f":small[{' · '.join([*told, *more])}]")
    before = next((other for other in place.jobs() if other.state == "running"), None) if job.state == "queued" else None
    if before is not None:
        st.markdown(t("job.behind", title=plain(widgets.job_title(before))))
    if job.error:
        st.markdown(plain(job.error))
    with st.container(horizontal=True):
        if job.is_live:
            label = t("job.cancelling") if job.cancelling else t("job.cancel")
            st.button(label, key=f"cancel.{job.id}", disabled=job.cancelling, on_click=place.cancel, args=(job.id,))
        elif job.state != "done" and st.button(t("job.resume"), key=f"resume.{job.id}", icon=":material/replay:"):
            place.resume(job.id)
            st.rerun(scope="app")
        run_id = (job.result or {}).get("run_id")
        if job.state == "done" and job.kind == "training":
            frame.page_link("train", t("job.result"), icon=":material/arrow_forward:", training=job.id)
        if job.state == "done" and run_id:
            told = t("job.result" if job.kind in RESULTS else "job.open")
            frame.page_link(RESULTS.get(job.kind, "overview"), told, icon=":material/arrow_forward:", run=run_id)
    with st.expander(t("job.log")):
        st.code("\n".join(place.job_log(job.id)) or t("job.log.empty"), language=None, height=200)
