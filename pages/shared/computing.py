"""Pieces of the compute page: what to analyse, what the files are, the start, and the jobs."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

import pandas as pd
import streamlit as st

from pages.shared import frame, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core.data.readers import find_recordings
from tracin_core.recipe import LossName, Recipe
from tracin_core.records.jobs import Job

LAYOUTS: Final = ("small", "large")
RULES: Final = ("sequence", "random")
RECORDED: Final = "recorded"
SHOWN_JOBS: Final = 8
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
    """A folder of checkpoints as chosen."""

    folder: Path
    prefix: str
    layout: str

    @property
    def request(self) -> dict[str, str]:
        return {"folder": str(self.folder), "prefix": self.prefix, "layout": self.layout}


# ---- what to analyse ------------------------------------------------------------------------------------------------------------


@st.cache_data(ttl=5, show_spinner=False)
def folders(path: str, kind: str) -> list[str]:
    """Ids of the folders of one kind under the allowed roots; looked for again after a few seconds."""
    place = session.workspace()
    return place.checkpoint_folders() if kind == "checkpoints" else place.recording_folders()


def choose_folder(kind: str, *, key: str) -> Path | None:
    """A folder that the server may read; None where there is none, with what to do about it."""
    known = folders(session.workspace_path(), kind)
    if not known:
        widgets.nothing_matches(t(f"compute.no_{kind}", roots=", ".join(session.workspace().roots)))
        return None
    chosen = st.selectbox(
        t(f"compute.{kind}.folder"), known, help=t("compute.roots.help"), **session.linked(key, known[0], valid=known)
    )
    return session.workspace().resolve(str(chosen))


def choose_checkpoints() -> Checkpoints | None:
    """Folder, prefix of the file names, and the network they belong to."""
    folder = choose_folder("checkpoints", key="folder")
    if folder is None:
        return None
    with st.container(horizontal=True):
        prefix = st.text_input(
            t("compute.prefix"), help=t("compute.prefix.help"), width=200, **session.linked("prefix", "model_epoch_")
        )
        layout = widgets.choose_code("layout", LAYOUTS, key="layout")
    return Checkpoints(folder, prefix, layout)


def choose_recordings() -> dict[str, Any] | None:
    """Root, material and frequency, from those that the folder holds, and how many takes of how many angles it has of them."""
    root = choose_folder("recordings", key="data")
    if root is None:
        return None
    found = find_recordings(root)
    if found.empty:
        widgets.nothing_matches(t("compute.no_layout"))
        return None
    kinds = {f"{material} {frequency}": part for (material, frequency), part in found.groupby(["material", "frequency"])}
    kind = st.selectbox(t("compute.kind"), list(kinds), **session.linked("kind", next(iter(kinds)), valid=kinds))
    part = kinds[str(kind)]
    takes = int(part["sequence"].nunique())
    st.markdown(t("compute.found", n=len(part), angles=int(part["angle"].nunique()), takes=takes))
    return {"root": root, "material": part["material"].iloc[0], "frequency": part["frequency"].iloc[0], "takes": takes}


# ---- what the files are ---------------------------------------------------------------------------------------------------------


def inspection(checkpoints: Checkpoints) -> None:
    """Looks into the files on request; shows what the newest look found."""
    if st.button(t("compute.inspect"), icon=":material/search:", help=t("compute.inspect.help"), key="inspect"):
        session.workspace().start_inspection(checkpoints.folder, checkpoints.prefix, checkpoints.layout)
        st.rerun()
    looks = [job for job in session.workspace().jobs(limit=50) if job.kind == "inspection" and job.request == checkpoints.request]
    if looks and looks[0].result:
        files_found(pd.DataFrame(looks[0].result["files"]))


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


def start(checkpoints: Checkpoints, data: dict[str, Any]) -> None:
    """Loss, split and name, each with what it defaults to; the button starts the analysis in the background."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = [RECORDED, *get_args(LossName)]
        loss = st.selectbox(
            t("compute.loss"), names, format_func=loss_label, width=260, **session.linked("loss", RECORDED, valid=names)
        )
        margin = st.number_input(t("compute.margin"), min_value=0.0, value=None, placeholder=t("compute.loss.recorded"), width=220)
        told = [
            checkpoints.folder.name,
            *([loss] if loss != RECORDED else []),
            *([f"margin {margin:g}"] if margin is not None else []),
        ]
        name = st.text_input(
            t("compute.name"), " ".join(told), width=300, key=f"name.{told}"
        )  # the default follows what was chosen
    split = choose_split(data["takes"])
    if not st.button(t("compute.go"), type="primary", icon=":material/play_arrow:", key="start"):
        return
    settings = {
        "name": name,
        "model": {"layout": checkpoints.layout},
        "data": {key: data[key] for key in ("root", "material", "frequency")},
        "split": split,
        "task": {"loss": None if loss == RECORDED else loss, "margin": margin},
        "checkpoints": {"folder": checkpoints.folder, "prefix": checkpoints.prefix},
    }
    started = session.workspace().compute(Recipe.from_dict(settings), wait=False)
    if isinstance(started, Job):
        st.rerun()
    st.success(t("compute.cached"), icon=":material/bolt:")
    frame.page_link("overview", t("job.open"), icon=":material/arrow_forward:", run=started.id)


def loss_label(loss: str) -> str:
    return t("compute.loss.recorded") if loss == RECORDED else loss


def choose_split(takes: int) -> dict[str, Any]:
    """How samples are divided; by takes, about half of them train."""
    with st.container(horizontal=True):
        rule = widgets.choose_code("split", RULES, key="split")
        if rule == "random":
            st.markdown(t("compute.split.random"))
            return {"rule": rule}
        train, validation = max(takes // 2, 1), max(takes // 5, 1)
        counts = {"train": train, "validation": validation, "test": max(takes - train - validation, 0)}
        # one set of fields per number of takes: their defaults follow it
        sides = {
            side: st.number_input(
                t(f"compute.split.{side}"), 0 if side == "test" else 1, value=count, width=150, key=f"{side}.{takes}"
            )
            for side, count in counts.items()
        }
    return {"rule": rule, **sides}


# ---- jobs -----------------------------------------------------------------------------------------------------------------------


def jobs() -> None:
    """The newest jobs with progress, cancel, resume and log; moves while one is live."""
    st.fragment(_jobs, run_every=1.0 if session.live_jobs() else None)()


def _jobs() -> None:
    newest = session.workspace().jobs(limit=SHOWN_JOBS)
    if not newest:
        st.markdown(t("compute.no_jobs"))
    for job in newest:
        with st.container(border=True):
            one_job(job)


def one_job(job: Job) -> None:
    """One job: what it is, how it stands, and what can be done about it."""
    place = session.workspace()
    widgets.progress(job)
    st.markdown(f":small[{t(f'job.kind.{job.kind}')} · {datetime.fromtimestamp(job.created):%Y-%m-%d %H:%M}]")
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
        if job.state == "done" and run_id:
            frame.page_link("overview", t("job.open"), icon=":material/arrow_forward:", run=run_id)
    with st.expander(t("job.log")):
        st.code("\n".join(place.job_log(job.id)) or t("job.log.empty"), language=None, height=200)
