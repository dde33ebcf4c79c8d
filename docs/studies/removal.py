"""Does leaving out what a score lists help? Simulated recordings with wrong angles or turned pairs, and digits with wrong labels.

    python docs/studies/removal.py [--seeds 8] [--trainings 3] [--only CASE] [--digits 1000] [--out FOLDER]

Each case plants errors in a copy of the training side, once per data seed, and trains a small network on it. Scores name the most harmful
or most suspect share of its examples; it is trained again without them, without as many at random (three draws), and without all that is
wrong (the oracle), with common seeds. Influence is of the validation side; measured is the accuracy on a third side, whose labels are
right. Differences are paired by data seed, with 95 % t intervals over data seeds. Writes `removal.md` and `removal.json` beside this
file.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from cases import angles, digits, write_down  # noqa: E402

from tracin_core.engine.training import train  # noqa: E402
from tracin_core.evaluating.calibrating import methods_of, questions  # noqa: E402
from tracin_core.reading import plugins_of, reader_of  # noqa: E402
from tracin_core.records.calibrations import Planted, calibration_settings, plant  # noqa: E402
from tracin_core.records.runs import Run  # noqa: E402
from tracin_core.records.workspace import Workspace, open_workspace  # noqa: E402
from tracin_core.scores.evaluation import paired_effect  # noqa: E402

DRAWS: Final = 3
TAKES: Final = {"train": 10, "validation": 4, "test": 40}  # 240 recordings to measure on
HARM: Final = ("mean_influence", "mean_influence.curvature")
SUSPECT: Final = ("self_influence", "self_influence.curvature", "mean_loss")
Arms = dict[str, list[Any]]


@dataclass(frozen=True)
class Case:
    """What is planted, and how much is left out.

    Attributes:
        data: digits, or the loss that ranks the simulated angles.
        share: of the training samples, or pairs, that is wrong.
        left_out: of the training examples.
    """

    data: Literal["digits", "logistic", "margin"]
    noise: Literal["labels", "pair_flips"]
    share: float
    left_out: float
    aim: str


CASES: Final = {
    "angles_10": Case("logistic", "labels", 0.10, 0.05, "C2: at least +1.3 points over random, interval above 0"),
    "angles_20": Case("logistic", "labels", 0.20, 0.05, "C1: at least +3.0 points over random, interval above 0"),
    "flips_20": Case("margin", "pair_flips", 0.20, 0.20, "C3: raw influence does harm here, and nothing that does is recommended"),
    "digits_10": Case("digits", "labels", 0.10, 0.10, "C4: at least 80 % of the oracle's gain"),
}


def prepared(place: Workspace, case: Case, count: int) -> Run:
    """The run on the data as they are: what is planted in its copy, and how a training of it goes."""
    recipe, settings = digits(place, count) if case.data == "digits" else angles(place, case.data, TAKES)
    folder = Path(str(recipe.checkpoints.folder))
    if not (folder / "training.json").exists():
        place.queue.wait(place.start_training(recipe, settings=settings, folder=folder).id)
    run = place.compute(recipe)
    assert isinstance(run, Run)
    return run


def one_seed(place: Workspace, run: Run, inputs: Any, case: Case, seed: int, trainings: int) -> dict[str, float]:
    """Accuracy on the third side after each arm, in the mean over trainings; `random` also over its draws."""
    planted = plant(run.samples, run.recipe.task, case.noise, case.share, seed)
    settings, _ = calibration_settings(run)
    learn = partial(trained, run, plugins_of(place), inputs, planted, settings)
    with tempfile.TemporaryDirectory() as folder:
        told = learn(Path(folder), seed=seed, keep="checkpoints")
        methods = methods_of(plugins_of(place), run, planted, inputs, Path(folder), told, seed=seed)
        chosen = arms(methods, planted, case, seed)
    found: dict[str, list[float]] = {}
    for arm, lists in chosen.items():
        for entries in lists:
            for training in range(trainings):
                with tempfile.TemporaryDirectory() as folder:
                    told = learn(Path(folder), seed=1000 * seed + training, keep="outputs", without=entries)
                found.setdefault(arm, []).append(told["history"][-1]["test_accuracy"])
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def trained(
    run: Run,
    plugins: Path,
    inputs: Any,
    planted: Planted,
    settings: dict[str, Any],
    folder: Path,
    *,
    seed: int,
    keep: Any,
    without: Any = (),
) -> dict[str, Any]:
    """One training on the planted copy without these samples (ids) or pairs (sets of ids)."""
    last = settings["save_epochs"] if keep == "checkpoints" else (settings["epochs"],)
    samples = frozenset(entry for entry in without if isinstance(entry, str))
    return train(
        inputs,
        planted.samples,
        folder,
        model=run.recipe.model,
        task=run.recipe.task,
        plugins=plugins,
        flip_pairs=planted.flips - set(without),
        exclude_samples=samples,
        exclude_pairs=frozenset(without) - samples,
        keep=keep,
        **{**settings, "save_epochs": tuple(last), "seed": seed},
    )


def arms(methods: Any, planted: Planted, case: Case, seed: int) -> Arms:
    """Arm -> lists of what is left out."""
    table = methods.view.train_pairs
    entries = [frozenset(ends) for ends in table[["id1", "id2"]].to_numpy()] if "id1" in table else table["id"].tolist()
    count = round(case.left_out * len(entries))
    ask = dict(questions(methods))
    lists: Arms = {"none": [[]]}
    for score in (*HARM, *SUSPECT):
        order = np.argsort(-np.asarray(ask[score]()), kind="stable")
        lists[score] = [[entries[row] for row in order[:count]]]
    draw = np.random.default_rng([seed, 1])  # `plant` draws from the seed itself: the same draw would be the planted errors
    lists["random"] = [[entries[row] for row in draw.choice(len(entries), count, replace=False)] for _ in range(DRAWS)]
    wrong = planted.wrong
    lists["oracle"] = [
        [entry for entry in entries if entry in planted.flips or (wrong & ({entry} if isinstance(entry, str) else entry))]
    ]
    return lists


def summary(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each arm's change of accuracy against nothing left out and against random, in points, with 95 % intervals over data seeds."""
    gain = paired_effect(100 * table["oracle"], 100 * table["none"]).difference.mean
    for arm in (name for name in table if name != "none"):
        row: dict[str, Any] = {"arm": arm}
        for against in ("none", "random"):
            found = paired_effect(100 * table[arm], 100 * table[against]).difference
            row |= {f"over_{against}": found.mean, f"over_{against}_low": found.low, f"over_{against}_high": found.high}
        yield {**row, "share_of_oracle": row["over_none"] / gain}


def in_markdown(name: str, case: Case, table: pd.DataFrame, seconds: float, simulated: bool) -> list[str]:
    lines = [f"## {name}{' (SIMULATED)' if simulated else ''}", ""]
    lines += [
        f"{case.share:.0%} {case.noise.replace('_', ' ')}, {case.left_out:.0%} of the training examples left out, {len(table)} data seeds, "
        f"{seconds / 60:.1f} minutes; accuracy with nothing left out {100 * table['none'].mean():.1f} %. {case.aim}.",
        "",
        "| left out | against nothing, points | against random, points | of the oracle's gain |",
        "|---|---|---|---|",
    ]
    for row in summary(table):
        cells = [
            f"{row[f'over_{it}']:+.2f} ({row[f'over_{it}_low']:+.2f} to {row[f'over_{it}_high']:+.2f})" for it in ("none", "random")
        ]
        lines.append(f"| {row['arm']} | {cells[0]} | {'' if row['arm'] == 'random' else cells[1]} | {row['share_of_oracle']:.0%} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="of the data: other errors and other weights")
    parser.add_argument("--trainings", type=int, default=3, help="of each arm and data seed")
    parser.add_argument("--digits", type=int, default=1_000, help="three fifths are trained on")
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--workspace", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    asked = f"--seeds {options.seeds} --trainings {options.trainings} --digits {options.digits}"
    asked += "".join(f" --only {name}" for name in options.only or [])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = open_workspace(options.workspace or Path(folder))
        for name in options.only or CASES:
            case, started = CASES[name], time.perf_counter()
            run = prepared(place, case, options.digits)
            inputs = reader_of(place, run.recipe.data).read(run.samples)
            rows = [one_seed(place, run, inputs, case, seed, options.trainings) for seed in range(1, options.seeds + 1)]
            table, seconds = pd.DataFrame(rows), time.perf_counter() - started
            lines = in_markdown(name, case, table, seconds, run.simulated)
            print("\n".join(lines), flush=True)
            told = {"case": name, **asdict(case), "seconds": seconds, "accuracy": rows, "summary": list(summary(table))}
            write_down(options.out, "removal", asked, "Does leaving out what a score lists help?", [(lines, told)])


if __name__ == "__main__":
    main()
