"""Pieces of the distribution page: how a score is spread, within groups, against the mean influence, and on a map of gradients."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import examples, grouping, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.records.runs import Run
from tracin_core.scores.maps import example_kernel, example_pca, tsne
from tracin_core.scores.patterns import quadrants as quadrants_of
from tracin_core.scores.spread import strata as strata_of
from tracin_core.scores.spread import third_of, thirds
from tracin_core.scores.view import View

MARKS: Final = (0.05, 0.5, 0.95)
NEIGHBOURS: Final = 1_000  # examples whose t-SNE takes some seconds
TESTS: Final = 500  # rows of the table of tests
LOOKS: Final = ("spread", "groups", "quadrants", "map")

Array = npt.NDArray[np.float64]
Part = npt.NDArray[np.bool_]


def choose_scale(score: str) -> charts.Scale:
    """The scale of the score's axis; a logarithm where the scores have one."""
    offered = charts.SCALES if score == "self_influence" else charts.SIGNED_SCALES
    chosen = widgets.choose_code("scale", offered, key="scale")
    return next(scale for scale in charts.SCALES if scale == chosen)


# ---- how the score is spread ------------------------------------------------------------------------------------------------------


def spread(run: Run, view: View, score: str, scale: charts.Scale, part: Part) -> None:
    """The histogram, or its running sum, of the score; quantiles; perhaps another loss or run over it; and the tails."""
    values = widgets.score_values(view, score)[part]
    with st.container(horizontal=True, gap="medium"):
        form = widgets.choose_code("form", ("bars", "cumulative"), key="form")
        other = choose_other(run, view)
    if other is not None and not part.all() and not other[1].train_pairs["id"].equals(view.train_pairs["id"]):
        widgets.nothing_matches(t("over.part"))  # which part of other examples would be meant?
        other = None
    axis, over = None, None
    if other is not None:
        name, theirs = other[0], widgets.score_values(other[1], score)
        theirs = theirs if part.all() else theirs[part]
        axis = charts.common_axis(values, theirs, scale=scale)
        over = (name, charts.histogram(theirs, axis=axis))
    bins = charts.histogram(values, scale, axis=axis)
    quantiles = charts.quantiles(values)
    own = run.loss.describe() if over is not None else ""
    if form == "cumulative":
        curves = {own or t(f"score.{score}"): bins, **({over[0]: over[1]} if over else {})}
        figure = charts.cumulative_figure(curves, x=t(f"score.{score}"), y=t("axis.share"))
    else:
        marks = {f"{share:.0%}": quantiles[share] for share in MARKS}
        figure = charts.histogram_figure(
            bins, x=t(f"score.{score}"), y=t("axis.pairs"), zeros=t("axis.zeros"), marks=marks, over=over, name=own
        )
    told = widgets.spread_in_words(values)
    widgets.chart(figure, key="distribution.histogram", alt=told)
    st.markdown(told)
    if other is not None:
        st.markdown(f"**{plain(other[0])}**: {widgets.spread_in_words(theirs)}")
    if zeros := int(np.sum(values == 0)):
        st.markdown(f":small[{t('spread.zeros.why', n=zeros, share=f'{zeros / len(values):.1%}')}]")
    widgets.quantile_table(quantiles)
    if run.kind != "scores":  # imported scores have no model
        reached_in_thirds(run, view, score, values, part)
        strata(run, view)


def reached_in_thirds(run: Run, view: View, score: str, values: charts.Array, part: Part) -> None:
    """How the last checkpoint does on the training examples with little, middling and much of the score; of the run's own alone."""
    own = run.train_pairs if run.noun == "pair" else run.splits["train"]
    if own["id"].tolist() != view.train_pairs["id"].tolist():
        return
    found = thirds(values, run.reached[part])
    numbers = run.task == "regression"
    shown = found.assign(
        third=[t(f"thirds.{name}") for name in found["third"]],
        reached=[widgets.reached(value, number=numbers) for value in found["reached"]],
        **{end: [charts.short(value) for value in found[end]] for end in ("lowest", "highest")},
        interval=intervals(found),
    )
    with st.expander(t("thirds.title.number" if numbers else "thirds.title"), icon=":material/stacked_bar_chart:"):
        names = {name: t(f"thirds.{name}") for name in ("n", "lowest", "highest")}
        of = {"third": t("thirds.third"), **names, "reached": t("thirds.reached.number" if numbers else "thirds.reached")}
        of |= {} if numbers else {"interval": t("thirds.interval")}
        st.dataframe(shown[list(of)], hide_index=True, column_config=of)
        why = f" {t('thirds.why.self_influence')}" if score == "self_influence" else ""
        st.markdown(f":small[{t('thirds.why')}{why}]")


def intervals(found: pd.DataFrame) -> list[str]:
    """The intervals of shares."""
    return [f"{low:.1%} – {high:.1%}" for low, high in zip(found["below"], found["above"], strict=True)]


def strata(run: Run, view: View) -> None:
    """What the model gets right in each third of self-influence, mean and total influence, on either side; and each test."""
    with st.expander(t("strata.title"), icon=":material/stacked_bar_chart:", on_change="rerun", key="strata.open") as opened:
        if not opened.open:
            return
        found = session.prepared(view, "strata", lambda: strata_of(view))
        reached = {"train": run.reached, "test": run.test_reached}
        for side, told in reached.items():
            st.markdown(f"**{t(f'strata.{side}')}**")
            strata_table(run, found[side], told)
        st.markdown(f":small[{t('strata.why')}]")
        each_test(run, view, found["test"])


def strata_table(run: Run, scores: dict[str, Array], reached: Array) -> None:
    """One row per score and third."""
    numbers = run.task == "regression"
    parts = [thirds(values, reached).assign(score=t(f"strata.{score}")) for score, values in scores.items()]
    found = pd.concat(parts, ignore_index=True)
    shown = found.assign(
        third=[t(f"thirds.{name}") for name in found["third"]],
        range=[f"{charts.short(low)} – {charts.short(high)}" for low, high in zip(found["lowest"], found["highest"], strict=True)],
        reached=[widgets.reached(value, number=numbers) for value in found["reached"]],
        interval=intervals(found),
    )
    names = {"score": t("strata.score"), "third": t("thirds.third")}
    names |= {"reached": t("thirds.reached.number" if numbers else "thirds.reached")}
    names |= {} if numbers else {"interval": t("thirds.interval")}
    names |= {"n": t("strata.n"), "range": t("strata.range")}
    st.dataframe(shown[list(names)], hide_index=True, column_config=names)


def each_test(run: Run, view: View, scores: dict[str, Array]) -> None:
    """Every test with what the model reaches on it and the third that it is in, the most influenced first."""
    numbers = run.task == "regression"
    order = np.argsort(-scores["total_influence"], kind="stable")[:TESTS]
    told = {"test": [examples.example_label(view.test_pairs.iloc[row]) for row in order]}
    value = run.test_reached[order]
    told["reached"] = [widgets.reached(one, number=True) if numbers else widgets.right(one) for one in value]
    named = {score: [t(f"thirds.{name}") for name in third_of(values)[order]] for score, values in scores.items()}
    names = {"test": t("strata.each"), "reached": t("thirds.reached.number" if numbers else "thirds.reached")}
    names |= {score: t(f"strata.{score}") for score in scores}
    st.dataframe(pd.DataFrame({**told, **named}), hide_index=True, column_config=names, height=min(38 + 35 * len(order), 320))
    st.markdown(f":small[{t('finding.shown', shown=len(order), total=len(view.test_pairs))}]")


def choose_other(run: Run, view: View) -> tuple[str, View] | None:
    """Another loss of this run, or another run, to lay over it: its name and view; None: nothing."""
    free = view.what_ifs().set_index("what_if")["available"]
    losses = [f"loss:{name}" for name in run.losses if name != run.loss.name] if free.get("loss", False) else []
    runs = session.finished_runs()
    others = {f"run:{run_id}": name for run_id, name in zip(runs["id"], runs["name"], strict=True) if run_id != run.id}
    offered = ["", *losses, *others]
    names = {"": t("over.none"), **{loss: loss.removeprefix("loss:") for loss in losses}, **others}
    chosen = st.selectbox(t("over"), offered, format_func=names.__getitem__, width=260, **session.linked("over", "", valid=offered))
    kind, _, which = str(chosen).partition(":")
    if not kind:
        return None
    if kind == "loss":
        return which, session.view(run, loss=which)
    return names[str(chosen)], session.view(session.workspace().run(which))


def tails(run: Run, view: View, score: str, part: Part) -> None:
    """The examples at either end of the score, to look at and hear."""
    st.subheader(t("distribution.tails"))
    tail = widgets.choose_code("tail", ("high", "low") if score == "self_influence" else ("low", "high"), key="tail")
    ranked = view.ranked(widgets.score_values(view, score), ascending=tail == "low", among=part)
    examples.explore(run, ranked, key=f"distribution.{score}.{tail}", columns=examples.score_columns(score))


# ---- groups -----------------------------------------------------------------------------------------------------------------------


def groups(run: Run, view: View, score: str, scale: charts.Scale, part: Part) -> None:
    """The score within groups, a box each."""
    column = grouping.choose_column(view, key="by")
    values = np.where(part, widgets.score_values(view, score), np.nan)
    grouping.boxes(view, values, column, charts.histogram(values, scale).axis, score=score)


# ---- quadrants --------------------------------------------------------------------------------------------------------------------


def quadrants(run: Run, view: View, score: str, scale: charts.Scale, part: Part) -> None:
    """Self-influence against the size of the mean influence: hard, typical, special case, redundant; and the examples of one of them."""
    own, mean = view.self_influence(), view.mean_influence()
    found = quadrants_of(own, mean)
    st.markdown(t("quadrants.why"))
    axes = (charts.common_axis(np.abs(mean)), charts.common_axis(own))
    points = pd.DataFrame(
        {
            "x": axes[0].place(np.abs(mean)),
            "y": axes[1].place(own),
            "label": [examples.example_label(example) for _, example in view.train_pairs.iterrows()] if few(view) else "",
            "group": pd.Categorical([t(f"quadrant.{name}") for name in found.labels]),
        }
    )[part]
    figure = charts.points_figure(points.reset_index(drop=True), x=t("quadrants.x"), y=t("score.self_influence"), axes=axes)
    counts = replace(found, labels=found.labels[part], directions=found.directions[part]).counts.set_index("quadrant")
    told = " · ".join(f"{t(f'quadrant.{name}')} {int(counts.loc[name].sum()):,}" for name in counts.index)
    widgets.chart(figure, key="distribution.quadrants", alt=told)
    table = counts.reset_index().assign(quadrant=[t(f"quadrant.{name}") for name in counts.index])
    named = {name: t(f"quadrants.{name}") for name in ("quadrant", "helps", "harms", "neither")}
    st.dataframe(table, hide_index=True, column_config=named)
    which = widgets.choose_code("quadrant", ("hard", "special_case", "typical", "redundant", "dead"), key="quadrant")
    st.markdown(f":small[{t(f'quadrant.{which}.help')}]")
    ranked = view.ranked(own, among=part & (found.labels == which))
    examples.explore(run, ranked, key=f"distribution.quadrant.{which}", columns=examples.score_columns("self_influence"))


def few(view: View) -> bool:
    """There are no more examples than are drawn as points of their own."""
    return len(view.train) <= charts.MANY_POINTS


# ---- map --------------------------------------------------------------------------------------------------------------------------


def gradient_map(run: Run, view: View, score: str, scale: charts.Scale, part: Part) -> None:
    """Training examples whose gradients are alike lie near each other; those chosen with the lasso, or by the picker, are shown below."""
    with st.container(horizontal=True, gap="medium"):
        offered = ("kernel_pca", "tsne") if len(view.train) <= NEIGHBOURS else ("kernel_pca",)
        method = widgets.choose_code("map", offered, key="map")
        colour = widgets.choose_code("colour", ("score", "group"), key="colour")
    placed = _placed(session.workspace_path(), run.id, run.digest, method, view)
    points = placed.assign(
        label=[examples.example_label(example) for _, example in view.train_pairs.iterrows()] if few(view) else ""
    )
    if colour == "score":
        points["value"] = widgets.score_values(view, score)
    else:
        points["group"] = _first_group(view)
    points = points[part & points["x"].notna()].rename_axis("row").reset_index()
    if points.empty:
        widgets.nothing_matches(t("gallery.empty"))
        return
    st.markdown(f":small[{t(f'map.{method}.told', n=len(view.train))} {t('map.why')}]")
    figure = charts.points_figure(
        points, x=placed.attrs["axes"][0], y=placed.attrs["axes"][1], name=t(f"score.{score}"), select=few(view)
    )
    chosen = select(
        figure,
        key=f"distribution.map.{method}.{colour}",
        alt=t("map.words", n=len(points), axes=plain(", ".join(placed.attrs["axes"]))),
    )
    among = np.zeros(len(view.train), dtype=bool)
    among[points["row"].to_numpy()[chosen] if chosen else points["row"].to_numpy()] = True
    st.markdown(t("map.chosen", n=len(chosen)) if chosen else f":small[{t('map.lasso')}]")
    ranked = view.ranked(widgets.score_values(view, score), among=among)
    examples.explore(run, ranked, key=f"distribution.map.list.{method}", columns=examples.score_columns(score))


def select(figure: Any, *, key: str, alt: str) -> list[int]:
    """The figure, and the rows of the points that were chosen in it."""
    event = st.plotly_chart(
        figure, key=key, alt=alt, on_select="rerun", selection_mode=("lasso", "box", "points"), config={"displaylogo": False}
    )
    return [int(point["customdata"]) for point in event["selection"]["points"] if "customdata" in point]


@st.cache_data(max_entries=8, show_spinner=False)
def _placed(path: str, run_id: str, digest: str, method: str, _view: View) -> pd.DataFrame:
    """Where each training example lies: x, y; in `attrs` what to write at the axes."""
    kernels, weights = _view.kernels.train_train, _view.checkpoint_weights
    if method == "tsne":
        kernel = example_kernel(_view.train, kernels, weights)
        found = tsne(kernel, _view.train.table["id"].to_numpy(dtype=object), perplexity=min(30.0, max(2.0, len(kernel) / 4)))
    else:
        found = example_pca(_view.train, kernels, weights)
    placed = pd.DataFrame(found.coordinates, columns=["x", "y"])
    placed.attrs = {"axes": list(found.axes)}
    return placed


def _first_group(view: View) -> Any:
    """What a point's colour stands for: the pair of angles' difference, or the sample's group."""
    if view.train.noun == "pair":
        return [f"{gap:g}°" for gap in view.train_pairs["gap"]]
    return view.train_pairs["group"]


DRAWN: Final = dict(zip(LOOKS, (spread, groups, quadrants, gradient_map), strict=True))
