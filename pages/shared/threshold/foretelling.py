"""What the next training with the list is predicted to do to the tests, and how far such predictions were right on this data set."""

from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import examples, frame, session, verifying, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.errors import ViewError
from tracin_core.records.evaluations import Retraining, retrainings, taken_out
from tracin_core.records.faithfulness import faithfulness
from tracin_core.records.runs import Run
from tracin_core.records.trainings import left_out_before
from tracin_core.scores.actions import WEIGHT, Action, actions_for, first_order
from tracin_core.scores.comparison import Methods
from tracin_core.scores.view import View

AT_ONCE: Final = 0.5  # seconds that a preview may take unasked, each time the line is let go
WORST: Final = 5  # tests in the table
NEWEST: Final = 10  # retrained lists that the preview is held against
METHOD: Final = "linearised_retraining"
LISTS: Final = "lists"  # asked for: the slow previews of the lists that were retrained

Named = npt.NDArray[np.int64]


def show(run: Run, view: View, entries: pd.DataFrame) -> None:
    """The section: what is done with the list, what that is predicted to do, and how far to believe it."""
    st.subheader(t("preview.title"))
    if entries.empty:
        st.markdown(t("preview.nothing"))
        return
    action, weight = choose_action(run, view, entries)
    named = view.named(entries)
    with st.container(horizontal=True, gap="medium"):
        left, right = st.container(width=500), st.container(width=370)
    with left:
        foretold(run, view, named, action, weight)
    with right:
        trusted(run, view)


def choose_action(run: Run, view: View, entries: pd.DataFrame) -> tuple[Action, float]:
    """What is done with the list, of what fits it, and the weight; in the words of Verify, which takes them over."""
    noun: Literal["pair", "sample"] = "pair" if "id1" in entries else "sample"
    weight = WEIGHT
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        action = cast(Action, widgets.choose_code("verify.action", actions_for(run.task, noun), key="action"))
        if action == "down_weight":
            weight = verifying.choose_weight()
    return action, weight


# ---- what is foretold -------------------------------------------------------------------------------------------------------------


def foretold(run: Run, view: View, named: Named, action: Action, weight: float) -> None:
    """The replay's answer; to first order where nothing can be replayed; or a button where it takes its time."""
    if run.kind == "scores":
        to_first_order(view, named, action, weight, t("preview.imported"))
        return
    what = ("preview", action, weight if action == "down_weight" else None, sha256(named.tobytes()).hexdigest())
    try:
        methods = methods_of(run, view)
        seconds = session.prepared(view, "preview.seconds", methods.replay.preview_seconds)
        pressed = (run.id, run.digest, *what)  # another run's list may well have the same rows
        if seconds > AT_ONCE and pressed not in asked_for():
            st.markdown(t("preview.slow", duration=widgets.duration(seconds)))
            st.button(
                t("preview.ask"), icon=":material/fast_forward:", key="preview.ask", on_click=asked_for().append, args=(pressed,)
            )
            return
        with st.spinner(t("preview.making")) if seconds > AT_ONCE else nullcontext():
            table = session.prepared(
                view, what, lambda: methods.replay.preview(named, action, weight=weight, left_out=before(run, view))
            )
    except ViewError as refusal:
        to_first_order(view, named * ~before(run, view), action, weight, plain(str(refusal)))
        return
    in_words(run, methods, table)
    worst(run, view, table)


def asked_for() -> list[Any]:
    """The slow previews that this visitor asked for."""
    return cast(list[Any], st.session_state.setdefault("_previews", []))


def methods_of(run: Run, view: View, *, validated: bool = False) -> Methods:
    """The methods on this view; or on it with the whole validation side for its tests."""
    return _methods(session.workspace_path(), run.id, run.digest, validated, run, view)


@st.cache_resource(max_entries=8, show_spinner=False)  # not `session.prepared`: what holds its view there would keep it for ever
def _methods(path: str, run_id: str, digest: str, validated: bool, _run: Run, _view: View) -> Methods:
    return _run.methods_on(_run.validated(_view) if validated else _view)


def before(run: Run, view: View) -> npt.NDArray[np.bool_]:
    """What the run's own training left out, as every training that is compared with it does."""
    return session.prepared(view, "left_out", lambda: taken_out(run, view.train_pairs, sorted(left_out_before(run))))


def in_words(run: Run, methods: Methods, table: pd.DataFrame) -> None:
    """One sentence, and what it rests on."""
    rise, number = table["rise"].to_numpy(), run.task == "regression"
    told: dict[str, Any] = {
        "loss": f"{table['loss'].mean():.4g}",
        "loss_after": f"{table['loss_after'].mean():.4g}",
        "change": f"{rise.mean():+.2g}",
        "reached": widgets.reached(table["reached"].mean(), number=number),
        "reached_after": widgets.reached(table["reached_after"].mean(), number=number),
        "better": int((rise < 0).sum()),
        "worse": int((rise > 0).sum()),
        "same": int((rise == 0).sum()),
        "tests": len(table),
    }
    st.markdown(t("preview.sentence.number" if number else "preview.sentence", **told))
    epoch = methods.view.checkpoint_names[methods.replay.checkpoint].removeprefix("epoch ")
    last = methods.view.checkpoint_names[-1].removeprefix("epoch ")
    ended = widgets.reached(float(methods.replay.trained_reached().mean()), number=number)
    st.markdown(f":small[{t('preview.what', epoch=epoch, last=last, reached=told['reached'], ended=ended)}]")


def worst(run: Run, view: View, table: pd.DataFrame) -> None:
    """The tests whose loss rises most."""
    hit = table.assign(what=test_names(view)).nlargest(WORST, "rise")
    hit = hit[hit["rise"] > 0]
    if hit.empty:
        st.markdown(t("preview.none_worse"))
        return
    number = run.task == "regression"
    told = partial(widgets.reached, number=True) if number else widgets.right
    shown = hit.assign(
        loss=[charts.short(value) for value in hit["loss"]],
        rise_of_loss=[f"{value:+.3g}" for value in hit["rise"]],
        reached=[" → ".join(told(value) for value in ends) for ends in zip(hit["reached"], hit["reached_after"], strict=True)],
    )
    names = {name: t(f"preview.column.{name}") for name in ("what", "loss", "rise_of_loss")}
    names["reached"] = t("preview.column.error" if number else "preview.column.right")
    st.dataframe(shown[list(names)], hide_index=True, column_config=names)


def test_names(view: View) -> list[str]:
    """Each test in a few words."""
    return [examples.example_label(test) for _, test in view.test_pairs.iterrows()]


def to_first_order(view: View, named: Named, action: Action, weight: float, why: str) -> None:
    """The sum of the influences, which needs no replay; with the reason why there is none."""
    st.markdown(t("preview.cannot", why=why))
    if action not in ("exclude", "down_weight"):
        st.markdown(t("preview.first_order.no"))
        return
    rise = first_order(view, named, action, weight)
    told = {"worse": int((rise > 0).sum()), "better": int((rise < 0).sum()), "tests": len(rise), "sum": charts.short(rise.mean())}
    st.markdown(t("preview.first_order", **told))
    hit = pd.DataFrame({"what": test_names(view), "rise": rise}).nlargest(WORST, "rise")
    hit = hit[hit["rise"] > 0]
    if len(hit):
        names = {"what": t("preview.column.what"), "rise": t("preview.column.rise")}
        shown = hit.assign(rise=[charts.short(value) for value in hit["rise"]])
        st.dataframe(shown, hide_index=True, column_config=names)


# ---- how far to believe it ----------------------------------------------------------------------------------------------------------


def trusted(run: Run, view: View) -> None:
    """How well such previews agreed with real trainings of this run's model; or that nobody knows yet."""
    st.markdown(f"**{t('preview.trust')}**")
    if not any([of_subsets(run), of_lists(run, view)]):
        st.markdown(t("preview.unknown"))
    frame.page_link("verify", t("preview.verify"), icon=":material/science:")


def of_subsets(run: Run) -> bool:
    """The agreement over random subsets, of the newest evaluation that asked; whether there is one."""
    for one in faithfulness(session.workspace(), run):
        row = one.methods[one.methods["method"] == METHOD] if len(one.methods) else one.methods
        if row.empty:
            continue
        low, high, value = (f"{row[name].iloc[0]:.2f}" for name in ("low", "high", "lds"))
        drawn = t(f"foretold.drawn.{one.drawn}", share=f"{one.share:.0%}", unit=t(f"foretold.{one.unit}"))
        told = t(f"foretold.measure.{one.drawn}")
        st.markdown(t("preview.lds", value=value, low=low, high=high, subsets=one.reported_on, drawn=drawn, measure=told))
        if one.ceiling is not None:
            st.markdown(f":small[{t('foretold.ceiling', value=f'{one.ceiling:.2f}')}]")
        if one.digest != run.digest:
            st.markdown(f":small[{t('verify.stale')}]")
        return True
    return False


def of_lists(run: Run, view: View) -> bool:
    """Foretold against measured, for each list of this run that was really retrained; whether there is one."""
    done = retrainings(session.workspace(), run)[:NEWEST]
    with st.spinner(t("preview.making")) if LISTS in asked_for() else nullcontext():
        compared = [against(run, view, result) for result in done]
    rows = [row for row in compared if not isinstance(row, str)]
    if rows:
        agree = sum(row["agree"] for row in rows)
        st.markdown(t("preview.lists", agree=agree, n=len(rows)))
        table = pd.DataFrame(rows).assign(agree=[t("preview.yes" if row["agree"] else "preview.no") for row in rows])
        names = {name: t(f"preview.column.{name}") for name in ("foretold", "measured", "agree", "list")}
        st.dataframe(table[list(names)], hide_index=True, column_config=names)
        st.markdown(f":small[{t('preview.lists.what', most=NEWEST)}]")
    silent = [why for why in compared if isinstance(why, str)]
    for why in sorted(set(silent)):
        st.markdown(f":small[{t(f'preview.lists.{why}', n=silent.count(why))}]")
    if "slow" in silent:
        st.button(
            t("preview.lists.ask"), icon=":material/fast_forward:", key="lists.ask", on_click=asked_for().append, args=(LISTS,)
        )
    return bool(done)


def against(run: Run, view: View, result: Retraining) -> dict[str, Any] | str:
    """The change of the mean loss that is foretold for a retrained list, and the one measured, over the whole validation side; or why they
    cannot be compared.
    """
    moved = result.moved("validation_loss")
    if result.digest != run.digest:
        return "changed"
    if moved is None or result.lines is None:
        return "unsaid"
    table = view.train_pairs if result.noun == "pair" else view.train_samples
    named = view.named(table[table["id"].isin(result.lines)])
    weight = WEIGHT if result.weight is None else result.weight
    what = ("preview.of", result.number)
    try:
        if (
            session.prepared(view, "preview.seconds", methods_of(run, view).replay.preview_seconds) > AT_ONCE
            and LISTS not in asked_for()
        ):
            return "slow"
        methods = methods_of(run, view, validated=True)
        rise = session.prepared(
            view,
            what,
            lambda: methods.replay.preview(named, result.action, weight=weight, left_out=before(run, view))["rise"].mean(),
        )
    except ViewError:
        return "refused"
    found = moved.difference
    return {
        "list": verifying.done_in_words(result),
        "foretold": f"{rise:+.3g}",
        "measured": f"{found.mean:+.3g} ({found.low:+.2g} – {found.high:+.2g})",
        "agree": bool(np.sign(rise) == np.sign(found.mean)),
    }
