"""The list on its way back into training: checked, written with its provenance, downloaded, marked in metadata, and the command."""

import os
import shlex
from pathlib import Path
from typing import Any, Final

import pandas as pd
import streamlit as st

from pages.shared import access, frame, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from pages.shared.threshold.exclusion import Line
from tracin_core.data.files import read_json
from tracin_core.records.evidence import Evidence, evidence, in_words
from tracin_core.records.runs import Run
from tracin_core.records.verdicts import Overruled
from tracin_core.scores.view import View

ENDS: Final = ("low", "high")
ICONS: Final = {"helps": ":material/thumb_up:", "unproven": ":material/help:", "harms": ":material/thumb_down:"}


def export(run: Run, view: View, line: Line, final: Overruled, verdicts: pd.DataFrame, who: str) -> None:
    """Writes the list into the workspace, and offers what was written: files to download, and the command that trains with it."""
    entries = final.entries
    ends = [name for name in ("id1", "id2") if name in entries] or ["id"]
    found = int(entries[ends].isin(set(run.samples["id"])).all(axis=1).sum())
    st.markdown(t("export.checked", n=len(entries), found=found))
    harmful = measured(evidence(session.workspace(), run, line.settings()))
    why = st.text_input(t("export.why.needed" if harmful else "export.why"), key="why")
    ready = found == len(entries) and not (harmful and not why.strip())
    label = t("export.write", n=len(entries))
    if st.button(label, type="primary", icon=":material/save:", key="write_list", disabled=not ready):
        by_people = {"excluded_by_person": final.added, "kept_by_person": final.kept}
        rule = {**line.settings(), **(by_people if final.added or final.kept else {})}
        session.workspace().export_exclusions(run, entries, rule, who=who, why=why, facts=facts(view, final, verdicts))
        st.toast(t("export.written", n=len(entries)), icon=":material/check:")
    written = session.workspace().exported_exclusions(run)
    if written.empty:
        st.markdown(t("export.none"))
        return
    newest = written.iloc[0]
    lines, matched = session.workspace().read_back(run, Path(newest["text"]))
    told = {"when": f"{pd.Timestamp(newest['created'], unit='s'):%Y-%m-%d %H:%M} UTC", "n": lines, "found": matched}
    st.markdown(t("export.newest", **told))
    kept = [str(entry["id"]) for entry in read_json(newest["provenance"])["entries"]]
    if kept != entries["id"].astype(str).tolist():
        st.warning(t("export.other", written=len(kept), shown=len(entries)), icon=":material/difference:")
    downloads(Path(newest["text"]), Path(newest["provenance"]))
    marked(Path(newest["text"]))
    frame.page_link("verify", t("export.verify"), icon=":material/science:", list=Path(newest["text"]).name)
    st.markdown(t("export.command"))
    st.code(training_command(run, Path(newest["text"])), language=None, wrap_lines=True)
    if len(written) > 1:
        st.markdown(f":small[{t('export.earlier', n=len(written) - 1, place=plain(f'exports/{run.id}'))}]")


def measured(found: list[Evidence]) -> bool:
    """What was measured of such lists is on the screen; whether one of the measurements shows harm."""
    shown = {"helps": st.success, "unproven": st.info, "harms": st.error}
    for one in found:
        ends = {name: in_words(getattr(one.found, name), one.measure) for name in ENDS}
        about = {"score": widgets.score_label(one.score), "number": one.number, "what": t(f"evidence.{one.about}")}
        told = t(f"evidence.{one.kind}.{one.verdict}", **about, **ends)
        shown[one.verdict](told, icon=ICONS[one.verdict])
    if not found:
        st.markdown(f":small[{t('evidence.none')}]")
    return any(one.verdict == "harms" for one in found)


def facts(view: View, final: Overruled, verdicts: pd.DataFrame) -> dict[str, Any]:
    """What the provenance says beyond the rule: how the scores were looked at, and what people decided."""
    names = [str(name) for name in view.checkpoint_names]
    weights = [float(weight) for weight in view.checkpoint_weights]
    looked = {"measure": view.measure, "checkpoints": dict(zip(names, weights, strict=True))}
    counts = {"rule": final.by_rule, "excluded": final.added, "kept": final.kept, "agreed": final.agreed}
    return {"view": looked, "verdicts": {**counts, "decisions": verdicts.to_dict(orient="records")}}


def downloads(text: Path, provenance: Path) -> None:
    """The newest list as the files that were written, and as a table."""
    with st.container(horizontal=True):
        for kind, path, mime in (("text", text, "text/plain"), ("provenance", provenance, "application/json")):
            label, icon = t(f"export.{kind}"), ":material/download:"
            st.download_button(label, path.read_bytes(), path.name, mime, key=f"download.{kind}", on_click="ignore", icon=icon)
        table = pd.DataFrame(read_json(provenance)["entries"])
        if "affected_tests" in table:
            table["affected_tests"] = [";".join(tests) for tests in table["affected_tests"]]
        name = text.with_suffix(".csv").name
        st.download_button(
            "CSV", table.to_csv(index=False), name, "text/csv", key="download.csv", on_click="ignore", icon=":material/download:"
        )


def marked(text: Path) -> None:
    """A copy of a sample metadata file of this server in which the newest list is marked; the file itself stays as it is."""
    if not st.toggle(t("export.metadata"), key="mark", help=t("export.metadata.help")):
        return
    place = session.workspace()
    known = [name for name in place.files_named(".json") if name.endswith("metadata.json") and "influence_metadata" not in name]
    if not known:
        st.markdown(t("export.metadata.none", roots=plain(", ".join(place.roots))))
        return
    source = st.selectbox(t("export.metadata.file"), known, key="mark.file")
    if st.button(t("export.metadata.mark"), key="mark.start", icon=":material/edit_note:"):
        done = place.marked_metadata(text, place.resolve(source, file=True))
        st.session_state["_marked"] = (text.name, source, done)
    name, of, done = st.session_state.get("_marked", ("", "", None))
    if done is not None and (name, of) == (text.name, source):
        st.markdown(t("export.metadata.done", n=len(done.marked), missing=len(done.missing), earlier=len(done.earlier)))
        label = t("export.metadata.download")
        data = done.path.read_bytes()
        st.download_button(label, data, done.path.name, "application/json", key="mark.download", on_click="ignore")


def training_command(run: Run, file: Path) -> str:
    """The command, from the folder of the product, that trains with this list. Where visitors come over the network it names no path."""
    place = session.workspace().root
    near = Path(os.path.relpath(place))
    told = shlex.quote(str(place if near.parts[:1] == ("..",) else near))
    if access.control():
        told = '"$TRACIN_WORKSPACE"'
    listed = f"{told}/{shlex.quote(file.relative_to(place).as_posix())}"
    return f".venv/bin/python -m tracin_core train --workspace {told} --run {shlex.quote(run.id)} --exclusions-file {listed}"
