"""The three ways to ask who pushed whom: of one test, of several tests together, of one training example."""

from collections.abc import Callable
from typing import Final, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import card, examples, session, widgets
from pages.shared.i18n import t
from tracin_core.records.runs import Run
from tracin_core.scores.examples import PairExamples, SampleExamples
from tracin_core.scores.view import Together, View

SHOWN, ROWS, LISTED = 10, 20, 500
COLUMNS: Final = {"name": "name", "dead": "state", "loss": "loss"}
Sides = dict[str, pd.DataFrame]
Rows = npt.NDArray[np.bool_]


def of_test(run: Run, view: View) -> None:
    """Which training examples helped one test, and which harmed it."""
    left, right = st.columns([1, 2])
    with left:
        cell = widgets.choose_cell(view.test_cells(), key="tests", label=t("neighbours.among"))
    among = np.isin(view.test_pairs["id"], view.tests_in(cell))
    with right:
        test = examples.choose_test(view.test_pairs, dead=view.dead_tests, among=among, key="test", label=t("neighbours.test"))
    list_tests(view, among)
    example = view.test_pairs.iloc[view.test_row(test)]
    card.look_at(run, example, t("neighbours.listen"))
    sides = named(("proponents", "opponents"), view.top(test, k=ROWS))
    counts = {side: view.count(test, side) for side in ("proponents", "opponents")}
    found = both_sides(run, view, sides, counts, key=f"test.{test}", none=t("neighbours.dead"))
    if found is not None:
        look_closer(run, found, example)
        turn("train", str(found["id"]))
        card.show(run, view, card.Relation(str(found["id"]), test, found["contributions"]))


def of_group(run: Run, view: View) -> None:
    """Which training examples helped a group of tests, and which harmed it, in the mean or in sum."""
    left, right = st.columns([1, 2])
    with left:
        cell = widgets.choose_cell(view.test_cells(), key="tests", label=t("neighbours.group"))
    with right:
        how = cast(Together, widgets.choose_code("neighbours.how", get_args(Together), key="how"))
    tests = view.tests_in(cell)
    live = int(sum(~view.dead_tests[np.isin(view.test_pairs["id"], tests)]))
    st.markdown(t("neighbours.group.told", live=live, total=len(tests)))
    if live == 0:
        widgets.nothing_matches(t("neighbours.group.dead"))
        return
    sides = named(("proponents", "opponents"), view.top_of_group(tests, ROWS, how))
    values = view.group_influence(tests, how)
    counts = {"proponents": int(np.sum(values > 0)), "opponents": int(np.sum(values < 0))}
    found = both_sides(run, view, sides, counts, key=f"group.{cell}.{how}", none=t("neighbours.group.dead"))
    if found is not None:
        look_closer(run, found, None)
        turn("train", str(found["id"]))
        card.show(run, view, card.Relation(str(found["id"]), None, found["contributions"]))


def of_train(run: Run, view: View) -> None:
    """Which tests one training example helped, and which it harmed."""
    left, right = st.columns([1, 2])
    with left:
        cell = widgets.choose_cell(view.angle_grid(np.zeros(len(view.train_pairs))), key="of", label=t("neighbours.among.train"))
    offered = view.train_pairs[np.isin(view.train_pairs["id"], view.train_in(cell))]
    with right:
        train = examples.choose_example(offered, key="train", label=t("neighbours.train"))
    example = view.train_pairs.iloc[view.train_row(train)]
    card.look_at(run, example, t("neighbours.listen.train"))
    sides = named(("helped", "harmed"), view.top_tests(train, ROWS))
    values = view.train_influence(train)
    counts = {"helped": int(np.sum(values > 0)), "harmed": int(np.sum(values < 0))}
    found = both_sides(run, view, sides, counts, key=f"train.{train}", none=t("neighbours.dead.train"))
    if found is not None:
        look_closer(run, found, example, side="test")
        turn("test", str(found["id"]))
        card.show(run, view, card.Relation(train, str(found["id"]), found["contributions"]))


DIRECTIONS: Final[dict[str, Callable[[Run, View], None]]] = {"test": of_test, "group": of_group, "train": of_train}


# ---- pieces ---------------------------------------------------------------------------------------------------------------------


def named(names: tuple[str, str], sides: tuple[pd.DataFrame, pd.DataFrame]) -> Sides:
    return dict(zip(names, sides, strict=True))


def both_sides(run: Run, view: View, sides: Sides, counts: dict[str, int], *, key: str, none: str) -> pd.Series | None:
    """The strongest of both sides as bars, and a gallery of one of them; gives back the example selected in it."""
    if all(side.empty for side in sides.values()):
        widgets.nothing_matches(none)
        return None
    reach = max(float(ranked["influence"].abs().max()) for ranked in sides.values() if len(ranked))  # one scale for both
    for (name, ranked), column in zip(sides.items(), st.columns(2, gap="large"), strict=True):
        with column:
            st.subheader(t(f"neighbours.{name}"))
            examples.ranked(ranked.head(SHOWN), key=f"neighbours.{name}", reach=reach)
    with st.container(horizontal=True, gap="medium"):
        side = widgets.choose_code("side", tuple(sides), key="side" if "proponents" in sides else "pushed")
        examples.choose_band(run)
    columns = examples.influence_columns(sides[side])
    if any(len(parts) != len(view.checkpoint_names) for parts in sides[side]["contributions"]):
        del columns["contributions"]  # imported scores may not say what each checkpoint adds
    return examples.picked(run, sides[side], key=f"neighbours.{side}.{key}", columns=columns, rows=ROWS, total=counts[side])


def look_closer(run: Run, found: pd.Series, other: pd.Series | None, side: str = "train") -> None:
    """The card of the example selected; of samples also that of the one it has to do with, beside it.

    Args:
        side: which side the example selected is of, train or test.
    """
    if run.noun == "pair" or other is None:
        examples.example_card(run, found)
        return
    sides = (side, "test" if side == "train" else "train")
    for example, told, column in zip((found, other), sides, st.columns(2), strict=True):
        with column:
            st.markdown(t(f"card.side.{told}"))
            examples.example_card(run, example)


def turn(direction: str, example: str) -> None:
    """A button that goes on from the example selected, the other way."""

    def go() -> None:
        session.choose("tests" if direction == "test" else "of", "")
        session.choose(direction, example)
        session.choose("direction", direction)

    st.button(t(f"neighbours.turn.{direction}"), icon=":material/swap_horiz:", on_click=go, key="turn")


def list_tests(view: View, among: Rows) -> None:
    """Every test with its loss, the dead ones last and marked, on request."""
    table = tests_told(view, among)
    dead = int(table["dead"].sum())
    label = t("neighbours.list", n=len(table), dead=dead)
    with st.expander(label, icon=":material/list:", key="tests.open", on_change="rerun") as opened:
        if opened.open:
            draw_tests(table)


def draw_tests(table: pd.DataFrame) -> None:
    """The first of these tests; a row selected is the test chosen."""
    shown = table.head(LISTED).assign(
        name=lambda rows: [examples.example_label(row) for _, row in rows.iterrows()],
        dead=lambda rows: [t(f"neighbours.list.{'dead' if dead else 'live'}") for dead in rows["dead"]],
    )
    ids = shown["id"].tolist()

    def choose_row() -> None:
        rows = st.session_state["tests.list"]["selection"]["rows"]
        if rows:
            session.choose("test", ids[rows[0]])

    texts = {name: t(f"neighbours.list.{key}") for name, key in COLUMNS.items() if name in shown}
    st.dataframe(
        shown[list(texts)].rename(columns=texts), key="tests.list", hide_index=True, on_select=choose_row,
        selection_mode="single-row", height=min(36 + 35 * len(shown), 420),
    )  # fmt: skip
    st.markdown(f":small[{t('neighbours.list.shown', shown=len(shown), total=len(table))}]")


def tests_told(view: View, among: Rows) -> pd.DataFrame:
    """These tests with dead, and loss at the last checkpoint where it is known: the highest first, the dead ones last."""
    table = view.test_pairs.assign(dead=view.dead_tests)
    if isinstance(view.test, PairExamples | SampleExamples):
        table = table.assign(loss=view.test.losses[-1])
    by = ["dead", *(["loss"] if "loss" in table else []), "id"]
    return table[among].sort_values(by, ascending=[name != "loss" for name in by], ignore_index=True)
