"""Pieces of the compute page: which data, which task, which model. Each choice offers only what the others leave possible."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import session, widgets
from pages.shared.i18n import t
from tracin_core.data.arrays import open_npz
from tracin_core.data.readers import find_recordings, reader_for
from tracin_core.data.samples import with_labels
from tracin_core.recipe import ClassificationTask, LabelLossName, LossName, NumberLossName, Recipe

KINDS: Final = ("recordings", "arrays", "images", "table", "plugin")
TASKS: Final = ("ranking", "classification", "regression")
MODELS: Final = {"recordings": ("ranker", "cnn", "mlp", "plugin"), "plugin": ("plugin",)}
OTHER_MODELS: Final = ("mlp", "cnn", "transformer", "plugin")
LAYOUTS: Final = ("small", "large", "large_dropout", "large_resized")
COLOURS: Final = ("grey", "rgb")
RECORDED: Final = "recorded"
LOSSES: Final = {"ranking": get_args(LossName), "classification": get_args(LabelLossName), "regression": get_args(NumberLossName)}
RULES: Final = {"recordings": ("sequence", "random", "stratified")}
OTHER_RULES: Final = ("stratified", "random", "column")
SUFFIX: Final = {"arrays": ".npz", "table": ".csv", "list": ".txt"}


@dataclass(frozen=True)
class Data:
    """Data as chosen. `shape` is of one sample, None where only the worker can know it."""

    section: dict[str, Any]
    samples: pd.DataFrame | None
    shape: tuple[int, ...] | None
    tokens: bool = False

    @property
    def kind(self) -> str:
        return str(self.section["kind"])

    @property
    def takes(self) -> int:
        return 0 if self.samples is None or "sequence" not in self.samples else int(self.samples["sequence"].nunique())


# ---- places -----------------------------------------------------------------------------------------------------------------------


@st.cache_data(ttl=5, show_spinner=False)
def places(path: str, kind: str) -> list[str]:
    """Ids of the folders or files of one kind under the allowed roots; looked for again after a few seconds."""
    place = session.workspace()
    if kind in SUFFIX:
        return place.files_named(SUFFIX[kind])
    return {"checkpoints": place.checkpoint_folders, "recordings": place.recording_folders, "images": place.image_folders}[kind]()


def choose_place(kind: str, *, key: str) -> Path | None:
    """A folder or file that the server may read; None where there is none, with what to do about it."""
    known = places(session.workspace_path(), kind)
    if not known:
        widgets.nothing_matches(t(f"compute.no_{kind}", roots=", ".join(session.workspace().roots)))
        return None
    chosen = st.selectbox(
        t(f"compute.{kind}.folder"), known, help=t("compute.roots.help"), **session.linked(key, known[0], valid=known)
    )
    return session.workspace().resolve(str(chosen), file=kind in SUFFIX)


def choose_plugin(what: str, *, key: str) -> str | None:
    """The name of a plugin that defines a model, or data; None where there is none."""
    plugins = session.workspace().plugins()
    for problem in plugins.loc[plugins["problem"] != "", "problem"]:
        st.warning(session.plain(problem), icon=":material/extension_off:")
    known = plugins.loc[plugins[what], "name"].tolist()
    if not known:
        widgets.nothing_matches(t(f"compute.no_plugin.{what}"))
        return None
    return str(st.selectbox(t(f"compute.plugin.{what}"), known, **session.linked(key, known[0], valid=known)))


# ---- data -------------------------------------------------------------------------------------------------------------------------


def choose_data() -> Data | None:
    """Kind and place of the data, and what there is of them."""
    kind = widgets.choose_code("data", KINDS, key="kind")
    if kind == "plugin":
        name = choose_plugin("data", key="data")
        return None if name is None else Data({"kind": "plugin", "name": name}, None, None)
    place = choose_place(kind, key="data")
    if place is None:
        return None
    section = {"recordings": recordings_section, "arrays": arrays_section, "images": images_section, "table": table_section}[kind](
        place
    )
    if section is None:
        return None
    data = looked_at(section, place.stat().st_mtime_ns)
    st.markdown(found_in_words(data))
    beside = left_out(section, place.stat().st_mtime_ns)
    if beside:
        st.markdown(f":small[:orange[{t('compute.left_out', n=len(beside))} {session.plain('; '.join(beside[:3]))}]]")
    return data


def found_in_words(data: Data) -> str:
    """How many samples there are, and what one is."""
    samples = data.samples if data.samples is not None else pd.DataFrame()
    if data.kind == "recordings":
        return t("compute.found", n=len(samples), angles=int(samples["angle"].nunique()), takes=data.takes)
    return t(
        "compute.found.samples", n=len(samples), targets=samples["target"].nunique(), shape=" × ".join(map(str, data.shape or ()))
    )


def recordings_section(root: Path) -> dict[str, Any] | None:
    """Material and frequency, from those that the folder holds."""
    found = find_recordings(root)
    if found.empty:
        widgets.nothing_matches(t("compute.no_layout"))
        return None
    pairs = found[["material", "frequency"]].drop_duplicates().itertuples(index=False)
    parts = {f"{material} {frequency}": (str(material), str(frequency)) for material, frequency in pairs}
    chosen = st.selectbox(t("compute.kind"), list(parts), **session.linked("part", next(iter(parts)), valid=parts))
    material, frequency = parts[str(chosen)]
    return {"kind": "recordings", "root": str(root), "material": material, "frequency": frequency}


def arrays_section(file: Path) -> dict[str, Any]:
    """Which array holds the inputs, and which the targets; x and y where there are such, else the first that may be."""
    with open_npz(file) as arrays:
        shapes = {name: header.shape for name, header in arrays.headers.items()}
    columns = [name for name, shape in shapes.items() if len(shape) == 1 and name != "id"]
    offered = {"x": sorted(shapes, key=lambda name: len(shapes[name]) < 2), "y": columns or list(shapes)}
    if not shapes:
        return {"kind": "arrays", "file": str(file)}  # whose reader says what is wrong with it
    with st.container(horizontal=True):
        inputs, target = (
            str(st.selectbox(t(f"compute.arrays.{told}"), names, width=160, **session.linked(key, usual, valid=names)))
            for told, (key, names) in zip(("inputs", "target"), offered.items(), strict=True)
            for usual in [key if key in names else names[0]]
        )
    return {"kind": "arrays", "file": str(file), "inputs": inputs, "target": target}


def images_section(root: Path) -> dict[str, Any]:
    """Colours, and the size that pictures are scaled to where they differ."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        colours = widgets.choose_code("colours", COLOURS, key="colours")
        size = st.number_input(
            t("compute.images.size"), 0, help=t("compute.images.size.help"), width=190, **session.linked("size", 0)
        )
    scaled = {"height": int(size), "width": int(size)} if size else {}
    return {"kind": "images", "root": str(root), "colours": colours, **scaled}


def table_section(file: Path) -> dict[str, Any] | None:
    """The column of targets; every column of numbers that is left is a feature."""
    columns = pd.read_csv(file, nrows=0, encoding="utf-8-sig").columns.tolist()
    target = st.selectbox(t("compute.table.target"), columns, **session.linked("target", columns[-1], valid=columns))
    return {"kind": "table", "file": str(file), "target": str(target)}


@st.cache_data(ttl=10, max_entries=8, show_spinner=False)
def looked_at(section: dict[str, Any], changed: int) -> Data:
    """The samples, and the shape of the first of them; looked at again when the place was changed."""
    reader = reader_for(of_section(section).data)
    samples = reader.list()
    first = reader.read(samples.head(1))
    return Data(section, samples, first.shape[1:], tokens=first.dtype == np.int64)


@st.cache_data(ttl=10, max_entries=8, show_spinner=False)
def left_out(section: dict[str, Any], changed: int) -> list[str]:
    """What lies beside the data and is no part of them, in words."""
    return [f"{left.name}: {left.reason}" for left in reader_for(of_section(section).data).left_out()]


def of_section(section: dict[str, Any]) -> Recipe:
    """A recipe of these data, as yet without its checkpoints."""
    return Recipe.from_dict({"data": section, "checkpoints": {"folder": "."}})


# ---- task and model ---------------------------------------------------------------------------------------------------------------


def choose_kind(data: Data) -> str:
    """What a model of these data does."""
    return widgets.choose_code("task", TASKS if data.kind in ("recordings", "plugin") else (*TASKS[1:], TASKS[0]), key="task")


def choose_task(data: Data) -> dict[str, Any]:
    """What the model was trained to do, and its loss where the checkpoints do not say it."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        task = choose_kind(data)
        names = [RECORDED, *LOSSES[task]]
        loss = st.selectbox(
            t("compute.loss"), names, format_func=loss_label, width=260, **session.linked("loss", RECORDED, valid=names)
        )
        said: dict[str, Any] = {"kind": task, "loss": None if loss == RECORDED else loss}
        if task == "ranking":
            said["margin"] = st.number_input(
                t("compute.margin"), min_value=0.0, value=None, placeholder=t("compute.loss.recorded"), width=220
            )
        if task == "classification":
            said["kernel"] = widgets.choose_code("kernel", ("label_logit", "outputs"), key="kernel")
    return said


def loss_label(loss: str) -> str:
    return t("compute.loss.recorded") if loss == RECORDED else loss


def choose_model(data: Data, task: str) -> dict[str, Any] | None:
    """The network that the checkpoints belong to; sizes that the data decide are not asked for."""
    kinds = MODELS.get(data.kind, OTHER_MODELS)
    kinds = kinds if task == "ranking" else tuple(kind for kind in kinds if kind != "ranker")
    kind = widgets.choose_code("model", kinds, key="model")
    if kind == "plugin":
        name = choose_plugin("model", key="plugin")
        return None if name is None else {"kind": "plugin", "name": name}
    if kind == "ranker":
        return {"kind": "ranker", "layout": widgets.choose_code("layout", LAYOUTS, key="layout")}
    shape = data.shape or ()
    outputs = {"outputs": classes_of(data) if task == "classification" else 1}
    if kind == "mlp":
        return {"kind": kind, "inputs": int(np.prod(shape)), "hidden": choose_widths("hidden", "128, 128"), **outputs}
    if kind == "cnn":
        return {
            "kind": kind,
            "channels": shape[0] if len(shape) == 3 else 1,
            "widths": choose_widths("widths", "16, 32"),
            **outputs,
        }
    return {"kind": kind, "length": shape[0] if shape else 1, **transformer_sizes(data), **outputs}


def choose_widths(key: str, usual: str) -> list[int]:
    """Whole numbers with commas between them."""
    said = st.text_input(
        t(f"compute.{key}"), help=t(f"compute.{key}.help"), width=220, **session.linked(key, usual, valid=widths_are_numbers)
    )
    return [int(part) for part in said.split(",")]


def widths_are_numbers(said: str) -> bool:
    return all(part.strip().isdecimal() and int(part) > 0 for part in said.split(","))


def transformer_sizes(data: Data) -> dict[str, Any]:
    with st.container(horizontal=True):
        sizes = {
            name: int(st.number_input(t(f"compute.{name}"), 1, width=120, **session.linked(name, usual)))
            for name, usual in (("width", 64), ("heads", 4), ("layers", 2))
        }
        if data.tokens:
            return {
                **sizes,
                "vocabulary": int(st.number_input(t("compute.vocabulary"), 1, width=150, **session.linked("vocabulary", 256))),
            }
    return {**sizes, "features": int((data.shape or (1, 1))[-1])}


def classes_of(data: Data) -> int:
    """How many classes the targets are."""
    if data.samples is None:
        return 2
    return int(with_labels(data.samples, ClassificationTask())["label"].max()) + 1


# ---- split ------------------------------------------------------------------------------------------------------------------------


def choose_split(data: Data) -> dict[str, Any]:
    """How samples are divided; recordings by takes, about half of which train."""
    with st.container(horizontal=True):
        rules = RULES.get(data.kind, OTHER_RULES)
        rule = widgets.choose_code("split", rules, key="split")
        if rule == "random":
            st.markdown(t("compute.split.random"))
            return {"rule": rule}
        if rule == "column":
            columns = [] if data.samples is None else [name for name in data.samples if name not in ("id", "target", "path")]
            if not columns:
                widgets.nothing_matches(t("compute.split.no_column"))
                return {"rule": "stratified"}
            column = st.selectbox(t("compute.split.column"), columns, **session.linked("column", columns[0], valid=columns))
            return {"rule": rule, "column": column}
        if rule == "stratified":
            share = st.number_input(t("compute.split.share"), 0.05, 0.95, width=190, **session.linked("share", 0.7))
            return {"rule": rule, "train_fraction": share}
        return {"rule": rule, **choose_takes(data.takes)}


def choose_takes(takes: int) -> dict[str, int]:
    """How many takes go to each side."""
    train, validation = max(takes // 2, 1), max(takes // 5, 1)
    counts = {"train": train, "validation": validation, "test": max(takes - train - validation, 0)}
    # one set of fields per number of takes: their defaults follow it
    return {
        side: st.number_input(t(f"compute.split.{side}"), 0 if side == "test" else 1, value=count, width=150, key=f"{side}.{takes}")
        for side, count in counts.items()
    }
