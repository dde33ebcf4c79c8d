"""Pieces of the threshold page: the rule, what it would cost, and the list on its way back into training."""

import os
import shlex
from pathlib import Path
from typing import Any, Final

import pandas as pd
import streamlit as st

from pages.shared import access, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core.records.runs import Run
from tracin_core.scores.exclusions import PairMode
from tracin_core.scores.view import View

MODES: Final[tuple[PairMode, ...]] = ("ranking_pair", "full_pair", "sample")
MUCH: Final = 0.25  # of the training pairs; removing more deserves a warning
HALF: Final = 0.5  # of an angle pair


# ---- the rule -------------------------------------------------------------------------------------------------------------------


def choose_rule(view: View) -> tuple[PairMode, int, int | None]:
    """Pair mode, minimum occurrences and the cap (None: no cap), each tied to the address."""
    tests = len(view.test_pairs)
    with st.container(horizontal=True, gap="large"):
        mode = widgets.choose_code("mode", MODES, key="mode") if view.train.noun == "pair" else "sample"
        occurrences = session.linked("m", min(3, tests), valid=range(1, tests + 1))
        st.number_input(t("threshold.occurrences"), 1, tests, help=t("threshold.occurrences.help"), width=190, **occurrences)
        most = session.linked("most", 50, valid=lambda count: count >= 0)
        st.number_input(t("threshold.most"), 0, help=t("threshold.most.help"), width=190, **most)
    st.markdown(f":small[{t(f'mode.{mode}.help')}]")
    return next(known for known in MODES if known == mode), int(st.session_state["m"]), int(st.session_state["most"]) or None


def choose_threshold(suggested: float) -> float:
    """The exact threshold: the suggested one until another is set, also when the rule and with it the suggestion changes."""
    if "suggested" in st.session_state and st.session_state.get("T") == st.session_state["suggested"] != suggested:
        session.choose("T", suggested)
    st.session_state["suggested"] = suggested
    picker = session.linked("T", suggested, valid=lambda value: value <= 0)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.number_input(t("threshold.value"), max_value=0.0, format="%.6g", width=220, help=t("threshold.value.help"), **picker)
        back = t("threshold.suggested", value=f"{suggested:g}")
        st.button(
            back,
            icon=":material/auto_fix_high:",
            help=t("threshold.suggested.help"),
            on_click=session.choose,
            args=("T", suggested),
        )
    return float(st.session_state["T"])


# ---- what it would cost ---------------------------------------------------------------------------------------------------------


def receipt(run: Run, view: View, chosen: pd.DataFrame, below: pd.Series, rule: dict[str, Any]) -> None:
    """What the list takes away, in figures and, where it takes much, in warnings."""
    removed = view.removed(chosen)
    lost = view.angle_grid(removed.astype(float))
    named = set(chosen["id"]) if "id1" not in chosen else {*chosen["id1"], *chosen["id2"]}
    figures = {
        "listed": f"{len(chosen):,}",
        "below": f"{int(below['pairs']):,}",
        "removed": f"{int(removed.sum()):,} ({removed.mean():.1%})",
        "samples": f"{len(named):,} / {len(view.train_samples):,}",
    }
    widgets.cards("receipt", figures)
    if len(chosen) == rule["max_exclusions"]:
        met = len(view.exclusions(**{**rule, "max_exclusions": None}))
        if met > len(chosen):
            st.info(t("guard.capped", n=len(chosen), all=met), icon=":material/content_cut:")
    for warning in guard_rails(chosen, removed.mean(), lost):
        st.warning(warning, icon=":material/warning:")
    if run.simulated:
        st.info(t("receipt.simulated"), icon=":material/science:")


def guard_rails(chosen: pd.DataFrame, share: float, lost: pd.DataFrame) -> list[str]:
    """Sentences of caution about a list: nothing in it, much in it, or an angle pair that loses half of its pairs."""
    if chosen.empty:
        return [t("guard.nothing")]
    said = [t("guard.much", share=f"{share:.0%}")] if share > MUCH else []
    halved = lost[lost["mean"] > HALF].sort_values("mean", ascending=False)
    if len(halved):
        cells = ", ".join(
            f"{plain(widgets.cell_label(row['low'], row['high']))} ({row['mean']:.0%})" for _, row in halved.head(3).iterrows()
        )
        said.append(t("guard.angles", n=len(halved), cells=cells))
    return said


def preview(chosen: pd.DataFrame, mode: PairMode) -> None:
    """The list in its order, as it would be written."""
    columns = {name: t(f"list.{name}") for name in ("id", "occurrences", "average_influence", "total_harm") if name in chosen}
    number = st.column_config.NumberColumn
    config = {name: number(label, format="%.4g") if name not in ("id", "occurrences") else label for name, label in columns.items()}
    st.dataframe(chosen[list(columns)], hide_index=True, column_config=config, height=min(38 + 35 * max(len(chosen), 1), 420))
    st.markdown(f":small[{t(f'list.order.{mode}', n=len(chosen))}]")


# ---- out and back into training -------------------------------------------------------------------------------------------------


def export(run: Run, chosen: pd.DataFrame, rule: dict[str, Any]) -> None:
    """Writes the list into the workspace, and offers what was written: files to download, and the command that trains with it."""
    who = access.person() or st.text_input(t("export.who"), key="who")
    why = st.text_input(t("export.why"), key="why")
    if st.button(t("export.write", n=len(chosen)), type="primary", icon=":material/save:", key="write_list"):
        session.workspace().export_exclusions(run, chosen, rule, who=who, why=why)
        st.toast(t("export.written", n=len(chosen)), icon=":material/check:")
    written = session.workspace().exported_exclusions(run)
    if written.empty:
        st.markdown(t("export.none"))
        return
    newest = written.iloc[0]
    st.markdown(
        t("export.newest", when=f"{pd.Timestamp(newest['created'], unit='s'):%Y-%m-%d %H:%M} UTC", n=int(newest["entries"]))
    )
    with st.container(horizontal=True):
        for kind, mime in (("text", "text/plain"), ("provenance", "application/json")):
            path = Path(newest[kind])
            label, icon = t(f"export.{kind}"), ":material/download:"
            st.download_button(label, path.read_bytes(), path.name, mime, key=f"download.{kind}", on_click="ignore", icon=icon)
    st.markdown(t("export.command"))
    st.code(training_command(run, Path(newest["text"])), language="bash", wrap_lines=True)
    if len(written) > 1:
        st.markdown(f":small[{t('export.earlier', n=len(written) - 1, place=plain(f'exports/{run.id}'))}]")


def training_command(run: Run, file: Path) -> str:
    """The command, from the folder of the product, that trains with this list. Where visitors come over the network it names no path."""
    place = session.workspace().root
    near = Path(os.path.relpath(place))
    told = shlex.quote(str(place if near.parts[:1] == ("..",) else near))
    if access.control():
        told = '"$TRACIN_WORKSPACE"'
    listed = f"{told}/{shlex.quote(file.relative_to(place).as_posix())}"
    return f".venv/bin/python -m tracin_core train --workspace {told} --run {shlex.quote(run.id)} --exclusions-file {listed}"
