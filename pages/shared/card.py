"""What one training example has to do with a test, or with several: the model's outputs, each checkpoint's share, and another label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st
from scipy import special

from pages.shared import examples, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.records.runs import Run
from tracin_core.scores.examples import Examples, PairExamples, SampleExamples
from tracin_core.scores.view import View

Array = npt.NDArray[np.float64]
CHART: Final = 300  # pixels


@dataclass(frozen=True)
class Relation:
    """A training example, and the test that it has an influence on; None: several tests, taken together."""

    train: str
    test: str | None
    contributions: Sequence[float]


def look_at(run: Run, example: pd.Series, label: str) -> None:
    """The card of an example that is not what the page is about, on request."""
    with st.expander(label, icon=":material/hearing:"):
        examples.example_card(run, example)


def show(run: Run, view: View, relation: Relation) -> None:
    """What the checkpoints say of the two, in charts and as a table; and what another label would change."""
    table = pd.DataFrame({"checkpoint": view.checkpoint_names})
    with st.container(horizontal=True):  # below each other where there is no room
        for side, told, name in (("train", view.train, relation.train), ("test", view.test, relation.test)):
            lines = {} if name is None else outputs_of(told, name)
            if lines:
                with st.container(width=CHART):
                    draw_outputs(lines, view.checkpoint_names, told, side)
                table = table.assign(**{f"{t(f'card.outputs.{side}')}: {line}": values for line, values in lines.items()})
        if len(relation.contributions) == len(view.checkpoint_names):
            with st.container(width=CHART):
                draw_contributions(relation.contributions, view.checkpoint_names)
            table = table.assign(**{t("contributions"): list(relation.contributions)})
        elif "contributions" in run.lacks:
            widgets.nothing_matches(t("imported.lacks.contributions"))
    if len(table.columns) > 1:
        with st.expander(t("groups.table")):
            st.dataframe(table.rename(columns={"checkpoint": t("axis.checkpoint")}), hide_index=True, width="content")
    relabel(run, view, relation)


# ---- checkpoint by checkpoint ---------------------------------------------------------------------------------------------------


def outputs_of(told: Examples, name: str) -> dict[str, Array]:
    """What the model said of each sample of this example at each checkpoint: its score, or how probable it held the sample's label.

    Nothing where outputs were not kept, as in imported scores.
    """
    row = told.rows_of(name)[0]
    samples = told.members[row]
    if isinstance(told, SampleExamples) and told.outputs.ndim == 3:
        return {str(told.samples["id"].iloc[sample]): special.expit(told.label_logits[:, sample]) for sample in samples}
    if isinstance(told, PairExamples | SampleExamples):
        return {str(told.samples["id"].iloc[sample]): told.outputs[:, sample].astype(float) for sample in samples}
    return {}


def draw_outputs(lines: dict[str, Array], names: Sequence[str], told: Examples, side: str) -> None:
    """A line for each sample, with the number that a regression should meet."""
    probable = isinstance(told, SampleExamples) and told.outputs.ndim == 3
    y = t("card.outputs.probability" if probable else "card.outputs.score")
    drawn: dict[str, Any] = {short_name(told, name): values for name, values in lines.items()}
    if isinstance(told, SampleExamples) and not told.loss.is_of_label:
        target = float(told.targets[told.rows_of(next(iter(lines)))[0]])
        drawn[t("card.outputs.target")] = np.full(len(names), target)
    spoken = "; ".join(
        t("card.outputs.words", name=name, first=charts.short(values[0]), last=charts.short(values[-1]))
        for name, values in drawn.items()
    )
    st.markdown(f"**{t(f'card.outputs.{side}')}**")
    widgets.chart(charts.lines_figure(drawn, names, x=t("axis.checkpoint"), y=y), key=f"card.outputs.{side}", alt=f"{y}: {spoken}")


def short_name(told: Examples, sample: str) -> str:
    """A sample's name in a chart: the angle and the take of a recording, else its id."""
    if not isinstance(told, PairExamples):
        return sample
    angle = told.samples.loc[told.samples["id"] == sample, "angle"].iloc[0]
    return f"{angle:g}° · {examples.take(sample)}"


def draw_contributions(parts: Sequence[float], names: Sequence[str]) -> None:
    """A bar for what each checkpoint adds."""
    first = int(np.argmax(np.abs(parts)))
    alt = t("card.contributions.words", name=names[first], value=charts.short(parts[first]))
    st.markdown(f"**{t('neighbours.by_checkpoint')}**")
    figure = charts.contributions_figure(parts, names, x=t("axis.checkpoint"), y=t("score.influence"))
    widgets.chart(figure, key="neighbours.contributions", alt=alt)


# ---- another label --------------------------------------------------------------------------------------------------------------


def relabel(run: Run, view: View, relation: Relation) -> None:
    """What another label of a sample of this training example would change for the test; why not, where the kernels do not say."""
    if not st.toggle(t("card.relabel"), help=t("card.relabel.help"), **session.linked("flip", False, quiet=True)):
        return
    told = view.what_ifs().set_index("what_if").loc["relabel"]
    if not told["available"]:
        widgets.nothing_matches(t("card.relabel.fixed", why=plain(str(told["why_not"]))))
        return
    samples = view.train.samples.iloc[view.train.members[view.train_row(relation.train)]]
    labels = {str(row["id"]): int(row["label"]) for _, row in samples.iterrows()}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sample, label = choose_label(run, labels)
    effect = float(effects(session.workspace_path(), run.id, run.digest, relation.test, run).at[sample, label])
    names = {"sample": plain(sample), "label": called(run, label), "own": called(run, labels[sample])}
    kind = "none" if effect == 0 else "helps" if effect > 0 else "harms"
    of = "one" if relation.test is not None else "mean"
    st.markdown(t(f"card.relabel.{kind}", tests=t(f"card.relabel.of.{of}"), value=charts.short(abs(effect)), **names))
    if run.noun == "pair":
        counts = run.relabel_counts({sample: label})
        st.markdown(t("card.relabel.counts", **vars(counts)))


def choose_label(run: Run, labels: dict[str, int]) -> tuple[str, int]:
    """The sample and its other label: the one that its partner has, to begin with."""
    sample = next(iter(labels))
    if len(labels) > 1:
        sample = str(
            st.segmented_control(
                t("card.relabel.sample"), list(labels), required=True, default=sample, key=f"flip.{'|'.join(labels)}"
            )
        )
    others = [label for label in sorted(run.classes) if label != labels[sample]]
    partner = next((label for name, label in labels.items() if name != sample), others[0])
    key = f"flip.{sample}.{partner}"
    label = st.selectbox(
        t("card.relabel.to"), others, index=others.index(partner), format_func=lambda code: called(run, code), key=key
    )
    return sample, int(label)


def called(run: Run, label: int) -> str:
    """What a label stands for: an angle, or the name of a class."""
    return f"{run.classes[label]:g}°" if run.noun == "pair" else plain(str(run.classes[label]))


@st.cache_data(max_entries=64, show_spinner=False)
def effects(path: str, run_id: str, digest: str, test: str | None, _run: Run) -> pd.DataFrame:
    """Of every label of every training sample on one test, or in the mean over live ones."""
    return _run.relabel_effects(test)
