"""Pieces of the compare page: its two sides, what they share, how far they agree, and what two seeds alone would differ by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import choosing, examples, session, widgets
from pages.shared import comparing_figures as figures
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core.records.differences import differ_only_in_seed, differences
from tracin_core.records.runs import Run
from tracin_core.scores.agreement import Side as Tail
from tracin_core.scores.agreement import compare, ghm_and_margin, overlap_curve
from tracin_core.scores.comparison import Methods
from tracin_core.scores.exclusions import compare_lists

BY: Final = ("run", "loss", "checkpoints", "method")
SCORES: Final = (*widgets.SCORES, "test_influence")
TAILS: Final = {"high": "highest", "low": "lowest"}
TOP: Final = 20  # the one k that is told in words
TWINS: Final = 3  # runs with another seed that are loaded for the noise
TOLD: Final = (10, 50, 200)
MOVERS: Final = 20
LISTED: Final = 500
LONGEST_TITLE: Final = 40  # characters of an axis
SHARE: Final = 5.0  # per cent

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Where the scores of one side come from; None: as the run has it."""

    run: str
    digest: str
    loss: str | None = None
    epochs: tuple[int, ...] | None = None
    method: str | None = None


@dataclass(frozen=True)
class Question:
    """What is compared: two sides, which score of each example, and which end of it is the top."""

    by: str
    a: Side
    b: Side
    score: str
    tail: str
    test: str = ""


@dataclass(frozen=True)
class Compared:
    """The examples that both sides have, with both scores and ranks; and how far the two agree."""

    table: pd.DataFrame  # a, b, a_rank, b_rank, rank_change, row (in the first run's table of examples)
    spearman: float
    curve: pd.DataFrame
    only_a: int
    only_b: int
    undefined: tuple[int, int]

    @property
    def places(self) -> float:
        """Half of the examples move by more places than this."""
        return float(self.table["rank_change"].abs().median())

    def shared(self, k: int) -> float:
        """How many examples the tops of k share."""
        return float(self.curve["shared"].iloc[k - 1])


# ---- what is compared -----------------------------------------------------------------------------------------------------------


def choose(run: Run) -> Question | None:
    """The question that the address and the widgets ask; None where it has no answer, which is said."""
    others = [str(other) for other in session.finished_runs()["id"] if other != run.id]
    codes = BY if others else (*BY[1:], BY[0])
    by = widgets.choose_code("compare.by", codes, key="compare")
    offered = SCORES if by != "method" else ("self_influence", "test_influence")
    score = widgets.choose_code("compare.score", offered, key="score")
    tail = widgets.choose_code("tail", ("high", "low") if score == "self_influence" else ("low", "high"), key="tail")
    test = ""
    if score == "test_influence":
        view = session.view(run)
        test = examples.choose_test(view.test_pairs, dead=view.dead_tests, key="test", label=t("neighbours.test"))
    sides = {"run": _runs, "loss": _losses, "checkpoints": _checkpoints, "method": partial(_methods, score=score)}[by](run)
    if sides is None:
        return None
    if sides[0] == sides[1]:
        widgets.nothing_matches(t("compare.same"))
        return None
    return Question(by, *sides, score, tail, test)


def _runs(run: Run) -> tuple[Side, Side] | None:
    """The run in view and another one. A run that a link names and that is not here stays chosen, and is said not to be here."""
    runs = session.finished_runs().set_index("id")
    others = [str(other) for other in runs.index if other != run.id]
    asked = st.query_params.get("vs") or st.session_state.get("vs")
    ids = [*others, *([asked] if asked and asked not in others else [])]
    if not ids:
        widgets.nothing_matches(t("compare.one_run"))
        return None
    picker = session.linked("vs", ids[0])
    st.selectbox(t("compare.vs"), ids, format_func=lambda other: _run_label(runs, other), **picker)
    other = session.run(str(st.session_state["vs"]))
    return Side(run.id, run.digest), Side(other.id, other.digest)


def _run_label(runs: pd.DataFrame, run_id: str) -> str:
    return f"{runs.at[run_id, 'name']} · {run_id[:4]}" if run_id in runs.index else t("run.unknown", id=run_id[:40])


def _losses(run: Run) -> tuple[Side, Side]:
    """Two losses of the run in view, the recorded one first."""
    known = [run.loss.name, *(loss for loss in choosing.LOSSES[run.task] if loss != run.loss.name)]
    names = _two("loss", known, (known[0], known[min(1, len(known) - 1)]), choosing.loss_label)
    return Side(run.id, run.digest, loss=names[0]), Side(run.id, run.digest, loss=names[1])


def _methods(run: Run, score: str) -> tuple[Side, Side]:
    """Two methods on the run in view that give such a score."""
    found = available(run)
    known = [str(name) for name in found.loc[found["self_influence" if score == "self_influence" else "influence"], "method"]]
    unanswered(found)
    second = "curvature" if "curvature" in known else known[-1]
    names = _two("method", known, (known[0], second), method_label)
    return Side(run.id, run.digest, method=names[0]), Side(run.id, run.digest, method=names[1])


def _two(what: str, known: Sequence[str], usual: tuple[str, str], label: Any) -> tuple[str, str]:
    """A picker for each side."""
    with st.container(horizontal=True, gap="medium"):
        for side, default in zip("ab", usual, strict=True):
            picker = session.linked(f"{what}_{side}", default, valid=known)
            st.selectbox(t(f"compare.{what}", side=side.upper()), known, format_func=label, width=320, **picker)
    return str(st.session_state[f"{what}_a"]), str(st.session_state[f"{what}_b"])


def _checkpoints(run: Run) -> tuple[Side, Side]:
    """Two subsets of the checkpoints: at first the earlier and the later half."""
    known = [int(epoch) for epoch in run.checkpoints["epoch"]]
    summed = run.summed_epochs
    half = max(1, len(summed) // 2)
    with st.container(horizontal=True, gap="medium"):
        chosen = [_epochs(f"epochs_{side}", known, part) for side, part in (("a", summed[:half]), ("b", summed[half:] or summed))]
    return Side(run.id, run.digest, epochs=chosen[0]), Side(run.id, run.digest, epochs=chosen[1])


def _epochs(key: str, known: Sequence[int], usual: Sequence[int]) -> tuple[int, ...]:
    """Some epochs; the address holds them as `2,4,6`, which no widget of Streamlit's keeps."""

    def read(text: str) -> list[int]:
        parts = text.split(",")
        return sorted({int(part) for part in parts}) if all(part.strip().isdigit() for part in parts) else []

    def chosen() -> None:
        session.choose(key, ",".join(map(str, sorted(st.session_state[f"{key}.pick"]))) or ",".join(map(str, usual)))

    session.linked(key, ",".join(map(str, usual)), valid=lambda text: bool(read(text)) and set(read(text)) <= set(known))
    epochs = read(str(st.session_state[key]))
    if st.session_state.get(f"{key}.pick") != epochs:
        st.session_state[f"{key}.pick"] = epochs
    st.multiselect(t(f"compare.{key}"), known, key=f"{key}.pick", on_change=chosen, width=420)
    return tuple(epochs)


def method_label(name: str) -> str:
    return t(f"compare.method.{name}")


def unanswered(found: pd.DataFrame) -> None:
    """Which methods have no answer for this run, and why."""
    refused = found[found["why_not"] != ""]
    if len(refused):
        with st.expander(t("compare.unanswered", n=len(refused)), icon=":material/help:"):
            for name, why in zip(refused["method"], refused["why_not"], strict=True):
                st.markdown(f"**{method_label(name)}** {plain(why)}")


def side_label(question: Question, side: Side) -> str:
    """One side in a few words."""
    if question.by == "loss":
        return choosing.loss_label(str(side.loss))
    if question.by == "method":
        return method_label(str(side.method))
    if question.by == "checkpoints":
        epochs = side.epochs or ()
        return t("compare.epochs", n=len(epochs), first=epochs[0], last=epochs[-1]) if len(epochs) > 1 else t("epoch", n=epochs[0])
    run = session.run(side.run)
    return f"{run.name} · {run.id[:4]}"


# ---- numbers --------------------------------------------------------------------------------------------------------------------


def compared(question: Question) -> Compared:
    """Both sides matched by what they are of, once for every visitor."""
    return _compared(session.workspace_path(), question.a, question.b, question.score, question.tail, question.test)


@st.cache_resource(max_entries=6, show_spinner=False)
def _compared(path: str, a: Side, b: Side, score: str, tail: str, test: str) -> Compared:
    one, other = (_values(path, side, score, test) for side in (a, b))
    end = cast(Tail, TAILS[tail])
    found = compare(one, other, names=("a", "b"), side=end, top=())
    names = [str(name) for name in one.index.names]
    keys = pd.Index(found.table[names[0]]) if len(names) == 1 else pd.MultiIndex.from_frame(found.table[names])
    table = found.table.drop(columns=names).assign(row=one.index.get_indexer(keys))
    curve = overlap_curve(table["a"], table["b"], side=end)
    undefined = int(table["a"].isna().sum()), int(table["b"].isna().sum())
    return Compared(table, found.spearman, curve, found.only_one, found.only_other, undefined)


@st.cache_resource(max_entries=12, show_spinner=False)
def _values(path: str, side: Side, score: str, test: str) -> pd.Series:
    """A score of every training example, by what the example is: the ids of a pair's samples in their order, or the sample's id."""
    run = session.run(side.run)
    if side.method is not None:
        methods = _methods_of(path, side.run, side.digest)
        values = methods.self_influence(side.method) if score == "self_influence" else methods.influence(side.method, test)
        return _indexed(methods.view.train_pairs, values)
    settings = {"loss": side.loss, "checkpoints": side.epochs}
    view = session.view(run, **{name: value for name, value in settings.items() if value is not None})
    return _indexed(view.train_pairs, view.influence(test) if score == "test_influence" else widgets.score_values(view, score))


def _indexed(table: pd.DataFrame, values: Array) -> pd.Series:
    if "id1" not in table:
        return pd.Series(values, index=pd.Index(table["id"], name="id"))
    one, two = (table[end].to_numpy(dtype=str) for end in ("id1", "id2"))
    first = one <= two
    ends = [np.where(first, one, two), np.where(first, two, one)]
    return pd.Series(values, index=pd.MultiIndex.from_arrays(ends, names=["id1", "id2"]))


@st.cache_resource(max_entries=2, show_spinner=False)
def _methods_of(path: str, run_id: str, digest: str) -> Methods:
    return session.run(run_id).methods()


def available(run: Run) -> pd.DataFrame:
    """The methods and what each can answer for this run, tried once."""
    return _available(session.workspace_path(), run.id, run.digest)


@st.cache_data(max_entries=8, show_spinner=False)
def _available(path: str, run_id: str, digest: str) -> pd.DataFrame:
    return _methods_of(path, run_id, digest).available()


def twins(run: Run) -> list[str]:
    """The finished runs that differ from this one in the seed of the training alone, newest first."""
    runs = session.finished_runs()
    return _twins(session.workspace_path(), run.id, run.digest, tuple(runs.loc[runs["task"] == run.task, "id"]))


@st.cache_data(max_entries=8, show_spinner=False)
def _twins(path: str, run_id: str, digest: str, ids: tuple[str, ...]) -> list[str]:
    run = session.run(run_id)
    return [other for other in ids if other != run_id and differ_only_in_seed(run, session.run(other))]


def noise(question: Question) -> list[Compared]:
    """The first side against the same with another seed, for a few of the runs that there are; empty where there is none."""
    run = session.run(question.a.run)
    others = [session.run(twin) for twin in twins(run)[:TWINS]]
    sides = [replace(question.a, run=other.id, digest=other.digest) for other in others]
    return [compared(replace(question, b=side)) for side in sides if side != question.b]


# ---- what is shown --------------------------------------------------------------------------------------------------------------


def matched(question: Question, found: Compared) -> bool:
    """Which examples both sides have, before anything else; False where there is nothing to compare."""
    a, b = (plain(side_label(question, side)) for side in (question.a, question.b))
    key = "compare.matched" if found.only_a or found.only_b else "compare.matched.all"
    st.markdown(t(key, both=len(found.table), only_a=found.only_a, only_b=found.only_b, a=a, b=b))
    for name, count in zip((a, b), found.undefined, strict=True):
        if count:
            st.info(t("compare.undefined", n=count, side=name), icon=":material/info:")
    if found.curve.empty:
        widgets.nothing_matches(t("compare.nothing_shared"))
        return False
    k = min(TOP, len(found.curve))
    figures_ = {
        "spearman": "–" if np.isnan(found.spearman) else f"{found.spearman:.3f}",
        "overlap": t("compare.of", shared=f"{found.shared(k):.3g}", k=k),
        "chance": f"{found.curve['chance'].iloc[k - 1]:.2g}",
        "places": f"{found.places:,.0f}",
    }
    widgets.cards("compare.figure", figures_)
    return True


def noise_in_words(question: Question, found: Compared, seeds: list[Compared]) -> None:
    """What two seeds alone differ by, as far as the workspace knows, and whether the two sides differ by more."""
    k = min(TOP, len(found.curve))
    told = {"k": k, "shared": f"{found.shared(k):.3g}", "places": f"{found.places:,.0f}"}
    if is_noise(question):
        st.info(t("compare.noise.is", **told), icon=":material/casino:")
        return
    if not seeds:
        st.markdown(f":small[{t('compare.noise.unknown')}]")
        return
    shared = sorted(seed.shared(min(k, len(seed.curve))) for seed in seeds)
    band = f"{shared[0]:.3g}" if shared[0] == shared[-1] else f"{shared[0]:.3g} – {shared[-1]:.3g}"
    kind = "beyond" if found.shared(k) < shared[0] else "within"
    places = f"{np.median([seed.places for seed in seeds]):,.0f}"
    st.info(t(f"compare.noise.{kind}", n=len(seeds), band=band, **{**told, "noise": places}), icon=":material/casino:")


def is_noise(question: Question) -> bool:
    """The two sides are runs that differ in the seed alone."""
    return question.by == "run" and question.b.run in twins(session.run(question.a.run))


def what_differs(question: Question) -> None:
    """What the two runs' checkpoints and data record differently."""
    found = differences(session.run(question.a.run), session.run(question.b.run))
    with st.expander(t("compare.differences", n=len(found)), icon=":material/difference:"):
        names = [t(f"compare.difference.{name}") if "." not in name else name.partition(".")[2] for name in found]
        table = pd.DataFrame({"what": names, "a": [a for a, _ in found.values()], "b": [b for _, b in found.values()]})
        st.dataframe(table, hide_index=True, column_config={"what": t("compare.what"), "a": "A", "b": "B"})


def overlap(question: Question, found: Compared, seeds: list[Compared]) -> None:
    """How much of the tops both share, for every k up to 200; with chance, and with what seeds alone share."""
    st.subheader(t("compare.overlap"))
    texts = {name: t(f"compare.{name}") for name in ("k", "share", "here", "chance", "seeds")}
    figure = figures.overlap_figure(found.curve, [seed.curve for seed in seeds], texts)
    tops = [k for k in TOLD if k <= len(found.table) / 2] or [1]
    told = [
        t("compare.overlap.top", k=k, shared=f"{found.shared(k):.3g}", chance=f"{found.curve['chance'].iloc[k - 1]:.2g}")
        for k in tops
    ]
    alt = t("compare.overlap.words", told="; ".join(told))
    widgets.chart(figure, key="compare.overlap", alt=alt)
    st.markdown(alt)


def scatter(question: Question, found: Compared) -> None:
    """Both scores of every example: points, or where there are many, how many lie in each small square."""
    st.subheader(t("compare.scatter"))
    both = found.table.dropna(subset=["a", "b"])
    sides = {end: side_label(question, side) for end, side in (("A", question.a), ("B", question.b))}
    a, b = (f"{end}: {name}" if len(name) <= LONGEST_TITLE else end for end, name in sides.items())  # said above in full
    if not both[["a", "b"]].to_numpy().any(axis=0).all():
        widgets.nothing_matches(t("compare.all_zero"))
        return
    own = question.by == "method"  # other methods have other units
    axes = figures.axes(both["a"].to_numpy(), both["b"].to_numpy(), own=own)
    names = session.view(session.run(question.a.run)).train_pairs["id"].to_numpy()[both["row"]]
    figure = figures.scatter_figure(both["a"].to_numpy(), both["b"].to_numpy(), names, axes, x=a, y=b, count=t("axis.pairs"))
    told = t("compare.scatter.words", n=len(both), spearman="–" if np.isnan(found.spearman) else f"{found.spearman:.3f}")
    widgets.chart(figure, key="compare.scatter", alt=told)
    st.markdown(f"{told} {t('compare.scatter.own' if own else 'compare.scatter.one')}")


def movers(run: Run, question: Question, found: Compared) -> None:
    """The examples whose ranks differ most."""
    st.subheader(t("compare.movers"))
    size = found.table["rank_change"].abs()
    rows = size[size > 0].sort_values(ascending=False, kind="stable").index[:MOVERS]
    moved = found.table.loc[rows]
    if moved.empty:
        widgets.nothing_matches(t("compare.no_movers"))
        return
    st.markdown(t("compare.movers.why", a=plain(side_label(question, question.a)), b=plain(side_label(question, question.b))))
    table = session.view(run).train_pairs.iloc[moved["row"]].reset_index(drop=True)
    shown = pd.concat([table, moved.drop(columns="row").reset_index(drop=True)], axis=1)
    number = st.column_config.NumberColumn
    columns: dict[str, Any] = {"rank_change": number(t("compare.rank_change"), format="%+.0f", help=t("compare.rank_change.help"))}
    columns |= {f"{side}_rank": number(t("compare.rank", side=side.upper()), format="%.0f") for side in "ab"}
    columns |= {side: number(t("compare.value", side=side.upper()), format="%.4g") for side in "ab"}
    density = densities(question)
    if density is not None:
        shown = shown.merge(density, on="id", how="left")
        columns |= {"ghm_bin": number(t("compare.ghm_bin"), help=t("compare.ghm_bin.help"), format="%d"),
                    "ghm_weight": number(t("compare.ghm_weight"), format="%.3g")}  # fmt: skip
    examples.explore(run, shown, key=f"compare.movers.{question.by}", columns=columns, total=int((size > 0).sum()), sounds=False)


def densities(question: Question) -> pd.DataFrame | None:
    """Where a GHM loss stands against another: the density bin and weight of each pair, which explain the difference."""
    of_ghm = [str(side.loss).startswith("ghm") for side in (question.a, question.b)]
    if question.by != "loss" or sum(of_ghm) != 1:
        return None
    run = session.run(question.a.run)
    ghm, other = (
        session.view(run, loss=side.loss) for side in sorted((question.a, question.b), key=lambda s: "ghm" not in str(s.loss))
    )
    return ghm_and_margin(ghm, other, top=()).table[["id", "ghm_bin", "ghm_weight"]]


def lists(run: Run, question: Question, found: Compared) -> None:
    """What each side would leave out, or look at first, at the same quantile of its own scores; scales differ too much for a threshold."""
    st.subheader(t("compare.lists"))
    picker = session.linked("share", SHARE, valid=lambda share: 0 < share <= 50)
    st.number_input(t("compare.lists.share"), 0.01, 50.0, step=1.0, format="%.4g", width=260, **picker)
    both = found.table.dropna(subset=["a", "b"])
    table = session.view(run).train_pairs.iloc[both["row"]]
    sign = 1.0 if question.tail == "high" else -1.0
    one, other = (_beyond(table, sign * both[side].to_numpy(), float(st.session_state["share"]) / 100) for side in "ab")
    met = compare_lists(one, other)
    counts = met["side"].value_counts()
    told = {"both": "both", "a": "first only", "b": "second only"}
    widgets.cards("compare.listed", {name: f"{int(counts.get(side, 0)):,}" for name, side in told.items()})
    if met.empty:
        widgets.nothing_matches(t("compare.lists.empty"))
        return
    names = {side: t(f"compare.side.{name}") for name, side in told.items()}
    columns = {
        "id": t("list.id"),
        "side": t("compare.side"),
        "place1": t("compare.place", side="A"),
        "place2": t("compare.place", side="B"),
    }
    shown = met.head(LISTED)
    places = {end: ["–" if np.isnan(place) else f"{place:.0f}" for place in shown[end]] for end in ("place1", "place2")}
    shown = shown.assign(side=[names[side] for side in shown["side"]], **places)
    st.dataframe(shown, hide_index=True, column_config=columns, height=min(38 + 35 * len(met), 360))
    st.markdown(f":small[{t('compare.lists.shown', shown=len(shown), total=len(met))} {t('compare.lists.words')}]")


def _beyond(table: pd.DataFrame, values: Array, share: float) -> pd.DataFrame:
    """The examples strictly beyond the quantile that leaves this share above it, strongest first."""
    line = float(np.quantile(values, 1 - share))
    listed = table[[name for name in ("id", "id1", "id2") if name in table]].assign(score=values)
    return listed[values > line].sort_values(["score", "id"], ascending=[False, True], ignore_index=True)
