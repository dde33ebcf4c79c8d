"""The report's sections, in their order: facts and the sentences that they bear, laid out as blocks."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from PIL import Image

from tracin_core import __version__, charts
from tracin_core.charts import marked, short
from tracin_core.errors import ViewError
from tracin_core.records.report import decisions, facts, sentences
from tracin_core.records.report.blocks import Block, Case, Chart, Code, Document, Picture, Pictures, Section, Table, Text
from tracin_core.records.report.rendering import data_url
from tracin_core.records.report.sentences import Sentences, example_name
from tracin_core.records.report.texts import Words, catalogue
from tracin_core.records.runs import Run
from tracin_core.scores.influence import Array
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.rollups import influence_grid
from tracin_core.scores.view import View

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

MEASURED: Final = ("learning_rate", "train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
FIRST: Final = 10  # rows of a list of examples
ROWS: Final = 60  # of any other table
GRID: Final = 40  # angles or groups on a side of a heatmap; more are no picture
WIDE: Final = 360  # pixels of a picture
LONG: Final = 400  # letters of a text sample


@dataclass(frozen=True)
class Subject:
    """What is reported on, with the scores that several sections read."""

    run: Run
    words: Words
    place: "Workspace | None"

    @cached_property
    def view(self) -> View:
        """As the checkpoints record it: their loss, each weighed 1."""
        return self.run.view()

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Of every training example: self_influence, and mean_influence where a test is live; of an imported run, what its files hold."""
        own = {} if "self_influence" in self.run.lacks else {"self_influence": self.view.self_influence()}
        without = "influence" in self.run.lacks or self.view.dead_tests.all()
        return own | ({} if without else {"mean_influence": self.view.mean_influence()})

    @cached_property
    def missing(self) -> list[Block]:
        """Why a score is not told."""
        told = [f"lacks.{part}" for part in ("self_influence", "influence") if part in self.run.lacks]
        dead = "influence" not in self.run.lacks and "mean_influence" not in self.scores
        return [Text(self.words(key)) for key in [*told, *(["tests.none_live"] if dead else [])]]

    @cached_property
    def lists(self) -> list[decisions.Listed]:
        return [] if self.place is None else decisions.lists(self.place, self.run, self.view)

    def text(self, told: Sentences) -> list[Block]:
        """The sentences as one paragraph."""
        spaced = "" if self.words.language.startswith("zh") else " "
        return [Text(spaced.join(self.words(one.key, **self._worded(one.values)) for one in told))] if told else []

    def _worded(self, values: dict[str, Any]) -> dict[str, Any]:
        """The name of a measure in words; everything else as it is."""
        return {name: self.words(f"column.{value}") if name == "measure" else value for name, value in values.items()}

    def names(self, *columns: str) -> tuple[str, ...]:
        return tuple(self.words(f"column.{name}") for name in columns)

    def cut(self, caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: Sequence[int]) -> Table:
        """A table of at most `ROWS` rows; its caption says so where there are more."""
        if len(rows) > ROWS:
            caption = self.words("table.cut", caption=caption, shown=ROWS, total=len(rows))
        return Table(caption, columns, tuple(rows[:ROWS]), frozenset(numbers))


def document(run: Run, language: str, place: "Workspace | None") -> Document:
    """The whole report.

    Raises:
        ViewError: there is no such language.
    """
    catalogue(language)
    words = Words(language, run.noun, imported=run.kind == "scores")
    subject = Subject(run, words, place)
    train, test = run.counts
    about = {"data": run.recipe.data.title, "task": words(f"task.{run.task}"), "loss": run.loss.describe()}
    return Document(
        language,
        words("title", name=run.name),
        words("lead", **about, train=train, test=test, checkpoints=len(run.summed_epochs)),
        words("simulated") if run.simulated else "",
        words("contents"),
        tuple(section(name, write, subject) for name, write in SECTIONS.items()),
        footer(run, words),
        words("warning", reasons="; ".join(run.verdict)) if run.verdict else "",
    )


def section(name: str, write: Callable[[Subject], list[Block]], subject: Subject) -> Section:
    """The section, or the reason why this run has none."""
    try:
        blocks = write(subject)
    except ViewError as refusal:
        blocks = [Text(subject.words("refused", reason=str(refusal)))]
    return Section(name, subject.words(f"section.{name}"), tuple(blocks))


# ---- settings and health ----------------------------------------------------------------------------------------------------------


def settings(subject: Subject) -> list[Block]:
    """What was computed, from what, and with which versions."""
    words = subject.words
    mark: list[Block] = [Text(words("settings.simulated"))] if subject.run.simulated else []
    rows = tuple((words(f"setting.{name}"), value) for name, value in told_settings(subject.run, words).items())
    table = Table(words("settings.table"), subject.names("setting", "value"), rows)
    if words.imported:
        return [*mark, table, files(subject)]
    return [*mark, table, checkpoints(subject), Code(words("settings.recipe"), subject.run.recipe.to_toml_without_places())]


def told_settings(run: Run, words: Words) -> dict[str, str]:
    """Of an imported run only what its files say."""
    sizes = {side: len(run.splits[side]) for side in ("train", "validation", "test")}
    known = {} if words.imported else {"weights": words("setting.weights.uniform"), "layers": ", ".join(run.layers)}
    split = {} if words.imported else {"split": words("setting.split.value", rule=run.recipe.split.rule, **sizes)}
    margin = {"margin": f"{run.loss.margin:g}"} if isinstance(run.loss, PairLoss) and np.isfinite(run.loss.margin) else {}
    about = {"name": f"{run.name} ({run.id})", "data": run.recipe.data.title, "task": words(f"task.{run.task}")}
    made = {"computed": moment(run.created), "digest": run.digest} | ({"versions": versions(run)} if versions(run) else {})
    return {**about, "loss": run.loss.describe(), **margin, **known, **split, **made}


def files(subject: Subject) -> Table:
    """The score files of an imported run."""
    words, known = subject.words, subject.run.manifest.scores["files"]
    rows = tuple((words(f"part.{file['part']}"), str(file["file"]), str(file["sha256"])[:12]) for file in known)
    return Table(words("settings.files"), subject.names("score", "file", "sha256"), rows)


def checkpoints(subject: Subject) -> Table:
    """One row per checkpoint: what it records of itself."""
    known, summed, words = subject.run.checkpoints, set(subject.run.summed_epochs), subject.words
    shown = [name for name in MEASURED if name in known and known[name].notna().any()]
    rows = [
        (
            str(row["epoch"]),
            words("yes" if row["epoch"] in summed else "no"),
            *(words("unknown") if pd.isna(row[name]) else short(float(row[name])) for name in shown),
            str(row["source"]),
            str(row["digest"])[:12],
        )
        for _, row in known.iterrows()
    ]
    names = subject.names("epoch", "summed", *shown, "file", "sha256")
    return subject.cut(words("settings.checkpoints"), names, rows, range(2, 2 + len(shown)))


def health(subject: Subject) -> list[Block]:
    """Whether the run is sound: sentences, and what was measured."""
    found, words = facts.health(subject.run, subject.view), subject.words
    rows = [
        (
            words(f"check.{check['check']}"),
            words("passed" if check["passed"] else "failed"),
            str(check["detail"]),
        )
        for _, check in found.checks.iterrows()
    ]
    table = Table(words("health.table"), subject.names("check", "result", "detail"), tuple(rows))
    return [*subject.text(sentences.of_health(found)), table]


# ---- distribution -----------------------------------------------------------------------------------------------------------------


def distribution(subject: Subject) -> list[Block]:
    """How self-influence and mean influence are spread."""
    words, scores = subject.words, subject.scores
    say: dict[str, Callable[[Array], Sentences]] = {
        "self_influence": lambda own: sentences.of_spread(facts.spread(own)),
        "mean_influence": lambda mean: sentences.of_signs(facts.signs(mean)),
    }
    blocks = list(subject.missing)
    for name, values in scores.items():
        blocks += subject.text(say[name](values))
        if values.any():
            blocks.append(histogram(subject, name, values))
    at = {name: charts.quantiles(values) for name, values in scores.items()}
    rows = tuple((words(f"score.{name}"), *(short(value) for value in told.values())) for name, told in at.items())
    names = (words("column.score"), *(f"{share:.0%}" for share in charts.QUANTILES))
    return [*blocks, Table(words("distribution.quantiles"), names, rows, frozenset(range(1, len(names))))]


def histogram(subject: Subject, name: str, values: Array) -> Chart:
    """Bins on an asinh axis; exact zeros apart."""
    words = subject.words
    bins = charts.histogram(values)
    figure = charts.histogram_figure(bins, x=words(f"score.{name}"), y=words("axis.examples"), zeros=words("axis.zeros"))
    low, median, high = (short(float(value)) for value in np.quantile(values, [0.05, 0.5, 0.95]))
    zeros = int(np.sum(values == 0))
    told = words("histogram.words", n=len(values), zeros=zeros, low=low, median=median, high=high)
    return Chart(words(f"histogram.{name}"), told, figure)


# ---- angles or groups -------------------------------------------------------------------------------------------------------------


def groups(subject: Subject) -> list[Block]:
    """Scores by angle pair, by angle and by angle difference; or by group of samples."""
    grids = {name: subject.view.angle_grid(values) for name, values in subject.scores.items()}
    blocks = [block for name, grid in grids.items() for block in cells(subject, name, grid)]
    if subject.run.task == "classification" and "mean_influence" in subject.scores:
        blocks += matrix(subject)
    if subject.run.noun == "pair":
        gaps = facts.by_gap(subject.view, subject.scores)
        blocks += [grid_table(subject, grids), *subject.text(sentences.of_gaps(gaps)), rolled(subject, gaps, "gap")]
    return [*blocks, rolled(subject, facts.by_group(subject.view, subject.scores), "group")]


def cells(subject: Subject, name: str, grid: pd.DataFrame) -> list[Block]:
    """A grid of one score with what it shows; of samples, whose groups are one row, and of too many angles, the sentence alone."""
    words, told = subject.words, subject.text(sentences.of_cells(grid, name))
    if subject.run.noun == "sample" or too_many(grid["low"], grid["high"]):
        return told
    figure = charts.grid_figure(grid, "mean", x=words("axis.high"), y=words("axis.low"), name=words("axis.mean"))
    said = " ".join(block.words for block in told if isinstance(block, Text))
    return [Chart(words(f"grid.{name}"), said, figure)]


def grid_table(subject: Subject, grids: dict[str, pd.DataFrame]) -> Table:
    """The cells of the grids side by side, highest first by the first score."""
    first = next(iter(grids.values())).sort_values("mean", ascending=False, kind="stable")
    others = [grid.set_index(["low", "high"]).loc[list(zip(first["low"], first["high"], strict=True))] for grid in grids.values()]
    values = [part[name].map(short).tolist() for part in others for name in ("mean", "median")]
    names = [sentences.cell_name(cell) for _, cell in first.iterrows()]
    rows = list(zip(names, (f"{int(n):,}" for n in first["n"]), *values, strict=True))
    heads = subject.names("cell", "n", *(f"{name}_of_{score}" for score in grids for name in ("mean", "median")))
    return subject.cut(subject.words("table.cells"), heads, rows, range(1, len(heads)))


def matrix(subject: Subject) -> list[Block]:
    """Which labels of training samples help or harm which labels of test samples."""
    words = subject.words
    found = influence_grid(subject.view, by="group", ends="first").rename(columns={"train_group": "low", "test_group": "high"})
    grid = found.astype({"low": str, "high": str})
    if too_many(grid["low"], grid["high"]):
        return [Text(words("groups.many", most=GRID))]
    known = grid.dropna(subset="mean")
    figure = charts.grid_figure(grid, "mean", x=words("axis.test_group"), y=words("axis.train_group"), name=words("axis.mean"))
    low, high = (known.iloc[int(place)] for place in (known["mean"].to_numpy().argmin(), known["mean"].to_numpy().argmax()))
    ends = {
        f"{which}{part}": value
        for which, cell in (("low", low), ("high", high))
        for part, value in (("_train", cell["low"]), ("_test", cell["high"]), ("_value", short(cell["mean"])))
    }
    return [Chart(words("matrix"), words("matrix.words", **ends), figure)]


def too_many(low: pd.Series, high: pd.Series) -> bool:
    return max(low.nunique(), high.nunique()) > GRID


def rolled(subject: Subject, table: pd.DataFrame, by: str) -> Table:
    """One row per group: how many examples, and their mean scores."""
    scores = [name for name in ("self_influence", "mean_influence") if name in table]
    rows = [
        (group if isinstance(group, str) else marked(group), f"{int(row['n']):,}", *(short(row[name]) for name in scores))
        for group, (_, row) in zip(table["group"], table.iterrows(), strict=True)
    ]
    names = subject.names(by, "n", *(f"mean_of_{name}" for name in scores))
    return subject.cut(subject.words(f"table.by_{by}"), names, rows, range(1, 2 + len(scores)))


# ---- examples and cases -----------------------------------------------------------------------------------------------------------


def examples(subject: Subject) -> list[Block]:
    """The highest self-influence, the most harmful and the most helpful in the mean."""
    lists = {"highest": ("self_influence", 1), "harmful": ("mean_influence", -1), "helpful": ("mean_influence", 1)}
    blocks: list[Block] = [Text(subject.words("examples.what")), *subject.missing]
    for name, (score, sign) in lists.items():
        blocks += ranked(subject, name, score, sign) if score in subject.scores else []
    return blocks


def ranked(subject: Subject, name: str, score: str, sign: int) -> list[Block]:
    """The first few by one score, of those above 0 (sign 1) or below (-1); or that there is none."""
    words, values = subject.words, subject.scores[score]
    among = int(np.sum(sign * values > 0))
    if not among:
        return [Text(words(f"examples.{name}.none"))]
    order = subject.view.ranked(values, ascending=sign < 0, k=min(FIRST, among))
    naming = [name for name in ("id1", "id2") if name in order] or ["id"]
    at = {key: place for place, key in enumerate(subject.view.train_pairs[naming].itertuples(index=False, name=None))}
    rows = []
    for rank, (_, example) in enumerate(order.iterrows(), start=1):
        row = at[tuple(example[naming])]
        told = (short(float(known[row])) for known in subject.scores.values())
        rows.append((str(rank), example_name(example), *told, f"{example['percentile']:.1f}"))
    names = subject.names("rank", "example", *subject.scores, "percentile")
    caption = words(f"examples.{name}", shown=len(rows), total=among)
    return [Table(caption, names, tuple(rows), frozenset({0, *range(2, len(names))}))]


def cases(subject: Subject) -> list[Block]:
    """The examples to look at and listen to first, each with what makes it notable."""
    words = subject.words
    if subject.missing:
        return subject.missing
    found = facts.cases(subject.view, subject.scores["self_influence"], subject.scores["mean_influence"])
    blocks: list[Block] = [Case(words("case.hard")), *subject.text(sentences.of_hard(found))]
    if found.hard_and_harmful:
        blocks += pictures(subject, found.hard_and_harmful.example)
    blocks += [Case(words("case.strongest")), *subject.text(sentences.of_strongest(found.strongest))]
    if found.strongest and found.strongest.contributions:
        blocks.append(contributions(subject, found.strongest))
    if found.strongest:
        blocks += pictures(subject, found.strongest.notable.example, found.strongest.test)
    blocks += [Case(words("case.recurs")), *subject.text(sentences.of_recurrence(found)), *recurring(subject, found)]
    return blocks


def contributions(subject: Subject, found: facts.Strongest) -> Chart:
    """What each checkpoint adds to the strongest negative influence."""
    words = subject.words
    figure = charts.contributions_figure(
        found.contributions, found.checkpoints, x=words("axis.checkpoint"), y=words("score.influence")
    )
    told = ", ".join(f"{name}: {short(term)}" for name, term in zip(found.checkpoints, found.contributions, strict=True))
    return Chart(words("contributions"), told, figure)


def recurring(subject: Subject, found: facts.Cases) -> list[Block]:
    """The groups that stand in the most harmful examples, least probable first; a picture of a recording that stands out."""
    if found.harmful == 0:
        return []
    table = found.recurring.table[found.recurring.table["chosen"] > 0].head(5)
    rows = tuple(
        (str(row["group"]), f"{row['chosen']:,}", f"{row['pairs']:,}", f"{row['expected']:.1f}", f"{row['p_familywise']:.2g}")
        for _, row in table.iterrows()
    )
    names = subject.names("recurring", "chosen", "of_group", "expected", "p")
    blocks: list[Block] = [Table(subject.words("table.recurs", harmful=found.harmful), names, rows, frozenset({1, 2, 3, 4}))]
    if found.standing_out is not None and subject.run.noun == "pair":
        blocks.append(Pictures((picture(subject, str(found.standing_out["group"]), ""),)))
    return blocks


def pictures(subject: Subject, *shown: pd.Series) -> list[Block]:
    """What there is to see, or to read, of each sample of these examples."""
    several = len(shown) > 1
    told = [
        picture(subject, str(example[end]), subject.words(f"side.{side}") if several else "")
        for side, example in zip(("train", "test"), shown, strict=False)
        for end in (("id1", "id2") if "id1" in example else ("id",))
    ]
    return [Pictures(tuple(told))]


def picture(subject: Subject, sample: str, side: str) -> Picture:
    """The sample's picture, made small, and its text."""
    known = subject.run.samples.set_index("id").loc[sample]
    what = marked(known["angle"]) if "angle" in known else str(known.get("label_name", known["target"]))
    preview = subject.run.preview(sample)
    caption = " · ".join(part for part in (side, what, sample) if part)
    source = small_png(preview.picture) if preview.picture.is_file() else None
    text = preview.text.read_text(encoding="utf-8") if preview.text.is_file() else ""
    if source is None and not text:
        caption = subject.words("picture.missing", caption=caption)
    return Picture(source, caption, f"{text[:LONG]} …" if len(text) > LONG else text)


def small_png(file: Path) -> str:
    """The picture as a data URL, at most `WIDE` pixels wide and high."""
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        if max(image.size) > WIDE:
            image.thumbnail((WIDE, WIDE))
            kept = io.BytesIO()
            image.save(kept, "PNG")
            content = kept.getvalue()
    return data_url(content, "image/png")


# ---- another loss -----------------------------------------------------------------------------------------------------------------


def losses(subject: Subject) -> list[Block]:
    """GHM against the margin loss, from the same kernels."""
    words = subject.words
    if subject.run.noun == "sample":
        return [Text(words("losses.pairs_only"))]
    found = facts.losses(subject.run, subject.view)
    moved = found.comparison.table.assign(far=found.comparison.table["rank_change"].abs())
    moved = moved[moved["far"] > 0].sort_values(["far", "id"], ascending=[False, True]).head(5)
    rows = tuple(
        (str(row["id"]), f"{row['ghm_rank']:g}", f"{row['margin_rank']:g}", f"{row['ghm_bin']:g}", f"{row['ghm_weight']:.3g}")
        for _, row in moved.iterrows()
    )
    names = subject.names("example", "ghm_rank", "other_rank", "ghm_bin", "ghm_weight")
    told = subject.text(sentences.of_losses(found))
    return [*told, Table(words("table.moved"), names, rows, frozenset({1, 2, 3, 4}))] if rows else told


# ---- decisions --------------------------------------------------------------------------------------------------------------------


def exclusions(subject: Subject) -> list[Block]:
    """The lists that were written of this run, with their rules."""
    words = subject.words
    if subject.place is None:
        return [Text(words("lists.not_looked"))]
    rows = [
        (
            moment(one.created),
            one.who or words("unknown"),
            one.why or words("unknown"),
            words("lists.problem", problem=one.problem) if one.rule is None else rule_in_words(one.rule),
            f"{one.entries:,}",
            words("unknown") if one.rule is None else f"{one.removed:,}",
            one.file,
        )
        for one in subject.lists
    ]
    names = subject.names("when", "who", "why", "rule", "entries", "removed", "file")
    told = subject.text(sentences.of_lists(subject.lists))
    return [*told, subject.cut(words("table.lists"), names, rows, (4, 5))] if rows else told


def rule_in_words(rule: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in rule.items())


def trainings(subject: Subject) -> list[Block]:
    """Before and after an exclusion, where a training in the workspace left out a list of this run."""
    words = subject.words
    if subject.place is None:
        return [Text(words("lists.not_looked"))]
    found = decisions.trainings(subject.place, subject.run, subject.lists)
    blocks = subject.text(sentences.of_trainings(found))
    for one in found.after:
        blocks += subject.text(sentences.of_retrained(one))
        rows = tuple(
            (
                words(f"column.{row['measure']}"),
                *(f"{value:.4g}" for value in (row["before"], row["after"], row["after"] - row["before"])),
            )
            for _, row in one.measured.iterrows()
        )
        names = subject.names("measure", "before", "after", "difference")
        blocks.append(Table(words("table.retrained", folder=one.folder), names, rows, frozenset({1, 2, 3})))
    return blocks


# ---- where it comes from ------------------------------------------------------------------------------------------------------------


def footer(run: Run, words: Words) -> tuple[str, ...]:
    """The report's provenance."""
    lines = [words("footer.run", id=run.id, computed=moment(run.created), digest=run.digest)]
    if not words.imported:
        lines.append(words("footer.recipe", digest=run.recipe.digest()))
    if versions(run):
        lines.append(words("footer.versions", versions=versions(run)))
    lines.append(words("footer.written", version=__version__))
    return tuple([words("footer.simulated"), *lines] if run.simulated else lines)


def versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.manifest.versions.items())


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


SECTIONS: Final[dict[str, Callable[[Subject], list[Block]]]] = {
    "settings": settings,
    "health": health,
    "distribution": distribution,
    "groups": groups,
    "examples": examples,
    "cases": cases,
    "losses": losses,
    "exclusions": exclusions,
    "trainings": trainings,
}
