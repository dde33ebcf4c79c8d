"""The report's sections, in their order: facts and the sentences that they bear, laid out as blocks."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from tracin_core import __version__
from tracin_core.charts import short
from tracin_core.records.report.blocks import Code, Document, Section, Table, Text
from tracin_core.records.report.texts import Words, catalogue
from tracin_core.records.runs import Run
from tracin_core.scores.losses import PairLoss

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

MEASURED: Final = ("learning_rate", "train_loss", "validation_loss", "train_accuracy", "validation_accuracy")


def document(run: Run, language: str, place: "Workspace | None") -> Document:
    """The whole report.

    Raises:
        ViewError: there is no such language.
    """
    catalogue(language)
    words = Words(language, run.noun)
    train, test = run.counts
    return Document(
        language,
        words("title", name=run.name),
        words(
            "lead", data=run.recipe.data.title, task=words(f"task.{run.task}"), loss=run.loss.describe(), train=train, test=test,
            checkpoints=len(run.summed_epochs),
        ),
        words("simulated") if run.simulated else "",
        words("contents"),
        (settings(run, words),),
        footer(run, words),
    )  # fmt: skip


# ---- settings -------------------------------------------------------------------------------------------------------------------


def settings(run: Run, words: Words) -> Section:
    """What was computed, from what, and with which versions."""
    mark = [Text(words("settings.simulated"))] if run.simulated else []
    rows = tuple((words(f"setting.{name}"), value) for name, value in told_settings(run, words).items())
    table = Table(words("settings.table"), (words("column.setting"), words("column.value")), rows)
    recipe = Code(words("settings.recipe"), run.recipe.to_toml())
    return Section("settings", words("settings"), (*mark, table, checkpoints(run, words), recipe))


def told_settings(run: Run, words: Words) -> dict[str, str]:
    sizes = {side: len(run.splits[side]) for side in ("train", "validation", "test")}
    told = {
        "name": f"{run.name} ({run.id})",
        "data": run.recipe.data.title,
        "task": words(f"task.{run.task}"),
        "loss": run.loss.describe(),
        "weights": words("setting.weights.uniform"),
        "split": words("setting.split.value", rule=run.recipe.split.rule, **sizes),
        "layers": ", ".join(run.layers),
        "computed": moment(run.created),
        "digest": run.digest,
        "versions": versions(run),
    }
    return {name: value for name, value in told.items() if value} | (
        {"margin": f"{run.loss.margin:g}"} if isinstance(run.loss, PairLoss) else {}
    )


def checkpoints(run: Run, words: Words) -> Table:
    """One row per checkpoint: what it records of itself."""
    known, summed = run.checkpoints, set(run.summed_epochs)
    shown = [name for name in MEASURED if name in known and known[name].notna().any()]
    columns = ("epoch", "summed", *shown, "file", "sha256")
    rows = tuple(
        (
            str(row["epoch"]), words("yes" if row["epoch"] in summed else "no"), *(number(row[name], words) for name in shown),
            str(row["source"]), str(row["digest"])[:12],
        )
        for _, row in known.iterrows()
    )  # fmt: skip
    names = tuple(words(f"column.{name}") for name in columns)
    return Table(words("settings.checkpoints"), names, rows, frozenset(range(2, 2 + len(shown))))


def footer(run: Run, words: Words) -> tuple[str, ...]:
    """Where the report comes from."""
    lines = [
        words("footer.run", id=run.id, computed=moment(run.created), digest=run.digest),
        words("footer.recipe", digest=run.recipe.digest()),
        words("footer.versions", versions=versions(run)),
        words("footer.written", version=__version__),
    ]
    return tuple([words("footer.simulated"), *lines] if run.simulated else lines)


def versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.manifest.versions.items())


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def number(value: Any, words: Words) -> str:
    return words("unknown") if pd.isna(value) else short(float(value))
