"""Pieces of the page that retrains without a list: which one, how long it would take, and what came of it."""

import json
from typing import Any, Final, Literal, cast

import pandas as pd
import streamlit as st

from pages.shared import frame, session, widgets
from pages.shared.i18n import t
from pages.shared.past import settings_in_words
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.data.files import read_json
from tracin_core.records.evaluations import DRAWS, SEEDS, Lasting, Retraining, retrainings, start_retraining, trainings_needed
from tracin_core.records.faithfulness import (
    DRAWN,
    FEWEST,
    GROUP,
    HALF,
    REPEATS,
    SUBSETS,
    UNITS,
    Drawn,
    Faithfulness,
    Unit,
    faithfulness,
    plain_run,
    start_lds,
)
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.trainings import own_training
from tracin_core.scores.actions import WEIGHT, Action, actions_for

LASTING: Final[dict[str, tuple[Lasting, ...]]] = {"both": ("epochs", "steps"), "epochs": ("epochs",), "steps": ("steps",)}
MOST_SUBSETS: Final = 1_000
ICONS: Final = {"helps": ":material/check_circle:", "harms": ":material/dangerous:", "unproven": ":material/help:"}


# ---- what is asked ----------------------------------------------------------------------------------------------------------------


def choose_list(run: Run) -> pd.Series | None:
    """One of the run's exported lists; None, said, where there is none."""
    written = session.workspace().exported_exclusions(run)
    if written.empty:
        widgets.nothing_matches(t("verify.no_list"))
        frame.page_link("threshold", t("verify.to_threshold"), icon=":material/tune:")
        return None
    names = {str(row["text"].name): row for _, row in written.iterrows()}
    labels = {name: list_label(row) for name, row in names.items()}
    picker = session.linked("list", next(iter(names)), valid=names)
    chosen = st.selectbox(t("verify.list"), list(names), format_func=labels.__getitem__, **picker)
    return names[str(chosen)]


def list_label(row: pd.Series) -> str:
    """A list by when it was written, how long it is, and why."""
    when = f"{pd.Timestamp(row['created'], unit='s'):%Y-%m-%d %H:%M} UTC"
    told = t("verify.list.label", when=when, n=int(row["entries"]))
    return f"{told} · {row['why']}" if row["why"] else told


def start(run: Run, listed: pd.Series) -> None:
    """What is done with the list, how often it is trained and how long that takes; and the button."""
    action = cast(Action, widgets.choose_code("verify.action", actions_for(run.task, noun_of(listed)), key="action"))
    weight, lasting = WEIGHT, LASTING["epochs"]
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        seeds = int(
            st.number_input(t("verify.seeds"), 2, 20, width=150, help=t("verify.seeds.help"), **number("seeds", SEEDS, 2, 20))
        )
        draws = int(
            st.number_input(t("verify.draws"), 1, 20, width=150, help=t("verify.draws.help"), **number("draws", DRAWS, 1, 20))
        )
        if action == "exclude":
            lasting = LASTING[widgets.choose_code("lasting", tuple(LASTING), key="lasting")]
        if action == "down_weight":
            weight = choose_weight()
    st.markdown(cost(run, trainings_needed(seeds, draws, lasting)))
    if st.button(t("verify.start"), type="primary", icon=":material/science:", key="start_retraining"):
        told = read_json(listed["provenance"])
        chosen = pd.DataFrame(told["entries"])
        asked = {"seeds": seeds, "draws": draws, "lasting": lasting, "action": action, "weight": weight}
        start_retraining(session.workspace(), run, chosen, rule=told["rule"], **asked)
        st.rerun()


def choose_weight() -> float:
    """Of what is down-weighted in the loss."""
    picker = session.linked("weight", WEIGHT, valid=lambda share: 0 < share < 1)
    return float(st.number_input(t("verify.weight"), 0.01, 0.99, step=0.05, width=150, help=t("verify.weight.help"), **picker))


def noun_of(listed: pd.Series) -> Literal["pair", "sample"]:
    """What the list is of."""
    entries = read_json(listed["provenance"])["entries"]
    return "pair" if entries and "id1" in entries[0] else "sample"


def number(key: str, default: int, low: int, high: int) -> dict[str, Any]:
    """A whole number tied to the address."""
    return session.linked(key, default, valid=lambda value: low <= value <= high)


def seconds_of_one(run: Run) -> float | None:
    """How long one training took: the run's own, or one of another evaluation; None: nobody knows."""
    own = own_training(run)
    if own is not None and own.get("seconds"):
        return float(own["seconds"])
    for job in session.workspace().jobs(limit=200):  # another evaluation of it tells as well
        if job.kind == "retraining" and job.request.get("run") == run.id and (seconds := took(job)) is not None:
            request = job.request
            draws = sum(arm["name"].startswith("random_") for arm in request["arms"])
            return seconds / trainings_needed(len(request["seeds"]), draws, request["lasting"])
    return None


def took(job: Job) -> float | None:
    """How long a job took that was done in one go."""
    if job.state != "done" or job.attempts != 1 or job.started is None or job.finished is None:
        return None
    return job.finished - job.started


# ---- what came of it --------------------------------------------------------------------------------------------------------------


def results(run: Run) -> None:
    """Every finished evaluation of the run's lists, newest first."""
    found = retrainings(session.workspace(), run)
    if not found:
        st.markdown(t("verify.none"))
    for result in found:
        with st.container(border=True):
            one_result(run, result)


def one_result(run: Run, result: Retraining) -> None:
    """A sentence that a tired person understands, the intervals it rests on, and every single training."""
    st.markdown(f"**{done_in_words(result)}**" + (f" · {plain(result.who)}" if result.who else ""))
    rule = {name: value for name, value in result.rule.items() if name != "pair_mode" or run.noun == "pair"}
    st.markdown(f":small[{t('verify.result.rule', rule=plain(settings_in_words(rule)))}]")
    if result.digest != run.digest:
        st.warning(t("verify.stale"), icon=":material/history:")
    for lasting in result.lasting:
        verdict = result.verdict(lasting)
        shown = {"helps": st.success, "harms": st.error, "unproven": st.warning}[verdict]
        shown(sentence(result, lasting), icon=ICONS[verdict])
    figure = charts.arms_figure(arms(result), x=t(f"verify.axis.{result.measure}"), percent=result.measure == "accuracy")
    widgets.chart(figure, key=f"verify.{result.number}", alt=sentence(result, result.lasting[0]))
    effects = result.effects()
    table = effects.assign(
        **{name: [t(f"verify.{name}.{value}") for value in effects[name]] for name in ("lasting", "arm", "against")}
    )
    percent = result.measure == "accuracy"
    for name in ("difference", "low", "high"):
        table[name] = [points(value, percent) for value in table[name]]
    named = {
        name: t(f"verify.column.{name}") for name in ("lasting", "arm", "against", "difference", "low", "high", "wins", "losses")
    }
    if percent:
        named["difference"] = t("verify.column.difference.accuracy")
    named["p"] = st.column_config.NumberColumn(t("verify.column.p"), format="%.3f", help=t("verify.column.p.help"))
    st.dataframe(table, hide_index=True, column_config=named)
    if result.assumed:
        st.markdown(f":small[{t('verify.assumed', names=plain(', '.join(result.assumed)))}]")
    st.markdown(f":small[{t('verify.scope', seeds=len(result.table['seed'].unique()))}]")
    content = json.dumps({**result.to_dict(), "simulated": run.simulated}, indent=2, default=str)
    st.download_button(
        t("verify.download"), content, f"retraining_{result.number}.json", "application/json",
        key=f"download.{result.number}", on_click="ignore", icon=":material/download:",
    )  # fmt: skip


def done_in_words(result: Retraining) -> str:
    """What was done with the list, with how many, and when it was measured."""
    when = f"{pd.Timestamp(result.created, unit='s'):%Y-%m-%d %H:%M} UTC"
    return t(f"verify.result.{result.action}", n=result.entries, when=when, weight=result.weight)


def foretold(run: Run) -> None:
    """How well each method's influences foretold training on subsets, the preview of a list among them; or how to measure it."""
    st.subheader(t("foretold.title"))
    found = faithfulness(session.workspace(), run)
    if not found:
        st.markdown(t("foretold.none"))
    with st.expander(t("foretold.ask"), icon=":material/science:", expanded=not found):
        ask_foretold(run)
    frame.running("faithfulness", run)
    if not found:
        return
    st.markdown(f":small[{t('foretold.preview')}]")
    for drawn in DRAWN:
        newest = next((one for one in found if one.drawn == drawn), None)
        if newest is not None:
            st.markdown(f"**{t(f'foretold.{drawn}')}**")
            one_foretold(run, newest)


def ask_foretold(run: Run) -> None:
    """What is left out, how often, and how long that takes; and the button."""
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        drawn = cast(Drawn, widgets.choose_code("foretold.left_out", DRAWN, key="drawn"))
        units = UNITS if run.noun == "pair" else UNITS[:1]
        unit = cast(Unit, widgets.choose_code("foretold.of", units, key="unit")) if len(units) > 1 else units[0]
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        counts = number("subsets", SUBSETS, FEWEST, MOST_SUBSETS)
        subsets = int(st.number_input(t("foretold.subsets"), FEWEST, MOST_SUBSETS, width=150, **counts))
        times = number("times", REPEATS, 1, 20)
        repeats = int(st.number_input(t("foretold.times"), 1, 20, width=150, help=t("foretold.times.help"), **times))
    st.markdown(cost(run, subsets * repeats))
    if run.precondition != "none" and plain_run(session.workspace(), run) is run:
        st.info(t("foretold.divided"), icon=":material/info:")
    if st.button(t("foretold.start"), icon=":material/science:", key="start_lds"):
        share = GROUP if drawn == "groups" else HALF
        start_lds(session.workspace(), run, unit=unit, drawn=drawn, subsets=subsets, repeats=repeats, share=share)
        st.rerun()


def cost(run: Run, trainings: int) -> str:
    """So many trainings, and how long they take where that is known."""
    seconds = seconds_of_one(run)
    told = t("verify.unknown") if seconds is None else t("verify.estimate", duration=widgets.duration(trainings * seconds))
    return f"{t('verify.count', n=trainings)} {told}"


def one_foretold(run: Run, newest: Faithfulness) -> None:
    """One evaluation: what was measured, each method's score, what limits it, and each test."""
    if newest.digest != run.digest:
        st.warning(t("verify.stale"), icon=":material/history:")
    drawn = t(f"foretold.drawn.{newest.drawn}", share=f"{newest.share:.0%}", unit=t(f"foretold.{newest.unit}"))
    measure = t(f"foretold.measure.{newest.drawn}")
    of = t("foretold.of_all", n=newest.subsets) if newest.reported_on < newest.subsets else ""
    st.markdown(t("foretold.what", subsets=newest.reported_on, of=of, repeats=newest.repeats, drawn=drawn, measure=measure))
    if newest.methods.empty:
        st.markdown(t("foretold.nobody"))
        return
    table = newest.methods.assign(method=[t(f"compare.method.{name}") for name in newest.methods["method"]])
    columns: dict[str, Any] = {"method": t("foretold.method")}
    columns |= {name: st.column_config.NumberColumn(t(f"foretold.{name}"), format="%.3f") for name in ("lds", "low", "high")}
    columns |= {"tests": t("foretold.tests"), "delta": t("foretold.delta")}
    table["delta"] = ["–" if pd.isna(delta) else f"{delta:g}" for delta in table["delta"]]  # most methods have none to choose
    st.dataframe(table[list(columns)], hide_index=True, column_config=columns)
    if newest.ceiling is not None:
        st.markdown(f":small[{t('foretold.ceiling', value=f'{newest.ceiling:.3f}')}]")
    for name, why in newest.missing.items():
        st.markdown(f":small[{t(f'compare.method.{name}')}: {plain(why)}]")
    per_test = newest.per_test.rename(columns={name: t(f"compare.method.{name}") for name in newest.methods["method"]})
    with st.expander(t("foretold.each")):
        two = {name: st.column_config.NumberColumn(format="%.2f") for name in per_test if name != "test"}
        st.dataframe(per_test, hide_index=True, column_config={"test": t("foretold.test"), **two})


def sentence(result: Retraining, lasting: str) -> str:
    """What the list did beyond what leaving out as much at random did, with its interval."""
    against_random = result.effect("list", "random", lasting).difference
    against_none = result.effect("list", "none", lasting).difference
    percent = result.measure == "accuracy"
    values = {
        "random": points(against_random.mean, percent),
        "low": points(against_random.low, percent),
        "high": points(against_random.high, percent),
        "none": points(against_none.mean, percent),
        "measure": t(f"verify.measure.{result.measure}"),
        "lasting": t(f"verify.lasting.{lasting}"),
        "doing": t(f"verify.doing.{result.action}", weight=result.weight),
    }
    return t(f"verify.verdict.{result.verdict(lasting)}", **values)


def points(value: float, percent: bool) -> str:
    """A difference with its sign: percentage points of an accuracy, else a number."""
    return f"{100 * value:+.2f}" if percent else f"{value:+.3g}"


def arms(result: Retraining) -> pd.DataFrame:
    """Each training as a point: arm (in words), score."""
    table = result.table
    kinds = ["random" if arm.startswith("random_") else arm for arm in table["arm"]]
    several = len(result.lasting) > 1
    named = [
        t(f"verify.arm.{kind}") + (f" · {t(f'verify.lasting.{lasting}')}" if several and kind != "none" else "")
        for kind, lasting in zip(kinds, table["lasting"], strict=True)
    ]
    order = {kind: place for place, kind in enumerate(("none", "list", "random", "reverse"))}
    drawn = pd.DataFrame(
        {"arm": named, "score": table["score"], "order": [order[kind] for kind in kinds], "lasting": table["lasting"]}
    )
    return drawn.sort_values(["lasting", "order"], kind="stable")
