"""How well do influences foretell training, and how far do seeds agree? Digits by a linear model and a network, and simulated recordings.

    python docs/studies/faithfulness.py [--digits 5000] [--subsets 100] [--ekfac DAMPING] [--stability 10]
        [--stability-digits 3000] [--only CASE] [--workspace FOLDER] [--out FOLDER]

Linear datamodelling scores by `evaluate lds` (docs/maths.md): the damping of curved methods is chosen on half of the subsets and every
figure is of the other half, with 95 % bootstrap intervals over tests and subsets. Stability: self-influence of runs that differ in their
seed alone, by `evaluate stability`. EKFAC: runs of the same checkpoints with `precondition = "ekfac"`, judged on the same trained halves;
their damping is chosen among DAMPINGS like that of the others. Writes `faithfulness.md` and `faithfulness.json` beside this file, in which
cases that were not asked for stay; what was computed in the workspace before is not computed again.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from scipy.special import log_softmax

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from cases import angles, digits, published_digits, write_down  # noqa: E402

from tracin_core.engine.training import train  # noqa: E402
from tracin_core.evaluating.faithfulness import kept_examples, summed, unit_names, what_stays  # noqa: E402
from tracin_core.recipe import Recipe  # noqa: E402
from tracin_core.records.faithfulness import FOLDER, Faithfulness, Unit, faithfulness, start_lds  # noqa: E402
from tracin_core.records.runs import Run  # noqa: E402
from tracin_core.records.stability import compare_runs  # noqa: E402
from tracin_core.records.workspace import Workspace, open_workspace  # noqa: E402
from tracin_core.scores.damping import halves  # noqa: E402
from tracin_core.scores.evaluation import lds  # noqa: E402

DAMPINGS: Final = (0.1, 1.0, 10.0, 100.0)  # of EKFAC, times the mean eigenvalue


@dataclass(frozen=True)
class Case:
    """A model, what subsets are drawn of, and what is aimed at."""

    data: Literal["linear", "network", "angles"]
    unit: Unit
    aim: str


# Without momentum, and in many small steps: with momentum 0.9 at a rate of 0.05 in batches of 256 one seed's losses foretell another's to
# 0.67 and curvature reaches 0.32.
PLAIN: Final = {"epochs": 20, "learning_rate": 0.02, "momentum": 0.0, "batch_pairs": 32}
CASES: Final = {
    "digits, linear": Case("linear", "sample", "D1 (5,000 digits): raw within 0.03 of 0.33, curvature at least 0.68"),
    "digits, network": Case("network", "sample", "D2 (5,000 digits): raw at least 0.14, curvature at least 0.45"),
    "angles, samples": Case("angles", "sample", "D3: curvature at least 0.65"),
    "angles, pairs": Case("angles", "pair", "D3: curvature at least 0.40"),
}


PUBLISHED: Final = "digits, linear, as published"
STEADY: Final = {"stability": "network", "stability, mislabelled": "mislabelled"}


def prepared(place: Workspace, data: str, count: int, seed: int) -> Run:
    """The run of this data with this seed, trained and analysed unless that is there already."""
    if data == "angles":
        recipe, settings = angles(place, "logistic")[0], PLAIN
    else:
        wrong = 3 * count // 50 if data == "mislabelled" else 0  # a tenth of what is trained on
        recipe, settings = digits(place, count, () if data == "linear" else (128,), wrong)
    told = recipe.to_dict()
    name = f"{data}_{count}_{seed}"
    told |= {"name": f"{told['name']}, {data}, seed {seed}", "checkpoints": {"folder": str(place.root / "trainings" / name)}}
    recipe = Recipe.from_dict(told)
    return computed(place, recipe, {**settings, "seed": seed})


def foretold(place: Workspace, name: str, count: int, subsets: int, dampings: Sequence[float]) -> tuple[list[str], dict[str, Any]]:
    """One case in Markdown and in plain values."""
    case = CASES[name]
    run = prepared(place, case.data, count, 1)
    repeats, drawn = (1, subsets) if case.data != "angles" else (2, max(2 * subsets // 5, 6))
    found = judged(place, run, case.unit, drawn, repeats)
    jobs = [one for one in place.jobs(limit=1_000) if (one.result or {}).get("evaluation") == found.number]
    seconds = max((one.finished or 0.0) - (one.started or 0.0) for one in jobs)  # of the one that trained
    ceiling = "" if found.ceiling is None else f" One seed's losses foretell another's to {found.ceiling:.3f}."
    lines = [f"## {name}{' (SIMULATED)' if run.simulated else ''}", ""]
    lines += [
        f"{drawn} random halves, each trained on {'once' if repeats == 1 else 'twice'}, {seconds / 60:.1f} minutes; reported on "
        f"{found.reported_on}.{ceiling} "
        f"{case.aim}.",
        "",
    ]
    lines += ["| method | LDS | damping |", "|---|---|---|"]
    for row in found.methods.to_dict("records"):
        damping = "" if pd.isna(row["delta"]) else f"{row['delta']:g}"
        lines.append(f"| {row['method']} | {row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {damping} |")
    told = {"case": name, "aim": case.aim, "seconds": seconds, **plain_values(found)}
    if case.data != "angles":
        added, told["ekfac"] = curved(place, run, found, dampings)
        lines += added
    lines += ["", *(f"Not asked: {method}. {why}" for method, why in found.missing.items()), ""]
    return lines, told


def judged(place: Workspace, run: Run, unit: Unit, subsets: int, repeats: int) -> Faithfulness:
    job = place.queue.wait(start_lds(place, run, unit=unit, subsets=subsets, repeats=repeats).id)
    return next(one for one in faithfulness(place, run) if one.number == (job.result or {})["evaluation"])


def plain_values(found: Faithfulness) -> dict[str, Any]:
    return {name: value for name, value in found.to_dict().items() if name != "per_test"}


def curved(place: Workspace, run: Run, plain: Faithfulness, dampings: Sequence[float]) -> tuple[list[str], list[dict[str, Any]]]:
    """A row of the table for EKFAC at each damping, judged on the trainings of the plain run; the other half's choice is marked."""
    told, rows = [], []
    for damping in dampings:
        recipe = run.recipe.to_dict()
        recipe |= {
            "name": f"{run.name}, EKFAC {damping:g}",
            "engine": {**recipe["engine"], "precondition": "ekfac", "damping": damping},
        }
        divided = place.compute(Recipe.from_dict(recipe))
        assert isinstance(divided, Run)
        found = judged(place, divided, plain.unit, plain.subsets, plain.repeats)
        assert found.trainings == plain.number
        told.append({"damping": damping, "chosen_by": on_the_other_half(place, divided, found), **plain_values(found)})
    best = max(told, key=lambda one: one["chosen_by"])
    for one in told:
        row = next(row for row in one["methods"] if row["method"] == "tracin")
        mark = ", the best on the other half" if one is best else ""
        rows.append(f"| ekfac | {row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {one['damping']:g}{mark} |")
    return rows, told


def on_the_other_half(place: Workspace, run: Run, found: Faithfulness) -> float:
    """The LDS of the run's influences on those halves that no figure is reported on."""
    methods, seed = run.methods(), int(found.trainings, 16)
    names = unit_names(methods, found.unit, set())
    kept = what_stays(methods, {"drawn": found.drawn, "subsets": found.subsets, "share": found.share}, names, seed)
    rows = [list(run.samples["id"]).index(name) for name in methods.view.test_samples["id"]]
    losses = []
    for subset in range(found.subsets):
        outputs = [
            np.load(place.root / FOLDER / found.trainings / f"{subset:03d}-{n + 1}" / "outputs.npy") for n in range(found.repeats)
        ]
        losses.append(
            np.mean([methods.replay.test_losses(each[rows].astype(float).reshape(-1, 1))[:, 0] for each in outputs], axis=0)
        )
    predicted = summed(methods, "tracin", kept_examples(methods, found.unit, names, kept, set()))
    chosen_on, _ = halves(found.subsets, seed)
    return lds(predicted[chosen_on], -np.array(losses)[chosen_on], resamples=0).mean


def published(place: Workspace, subsets: int, dampings: Sequence[float]) -> tuple[list[str], dict[str, Any]]:
    """The published benchmark's setting, in which raw TracIn has the published score; its trainings are plain ones of half the side."""
    recipe, settings = published_digits(place)
    runs = {"tracin": computed(place, recipe, {**settings, "seed": 42})}
    for damping in dampings:
        engine = {**recipe.to_dict()["engine"], "precondition": "ekfac", "damping": damping}
        told = {**recipe.to_dict(), "name": f"{recipe.name}, EKFAC {damping:g}", "engine": engine}
        runs[f"ekfac, damping {damping:g}"] = computed(place, Recipe.from_dict(told), settings)
    samples = runs["tracin"].samples
    with np.load(recipe.data.place) as arrays:
        rows_of = pd.Index(arrays["id"]).get_indexer(samples["id"])
        inputs, labels = arrays["x"][rows_of], arrays["y"][rows_of]
    tests = np.flatnonzero(samples["split"] == "validation")
    names = runs["tracin"].splits["train"]["id"].to_numpy(dtype=object)
    kept = np.zeros((subsets, len(names)))
    for row, draw in zip(kept, np.random.default_rng(1).spawn(subsets), strict=True):
        row[draw.choice(len(names), len(names) // 2, replace=False)] = 1.0
    measured = np.empty((subsets, len(tests)))
    for subset, row in enumerate(kept):
        folder = place.root / FOLDER / "published" / f"{subset:03d}"
        if not (folder / "outputs.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            told = {**settings, "save_epochs": (settings["epochs"],), "seed": 100 + subset}
            shared = {"model": recipe.model, "task": recipe.task, "plugins": place.root / "plugins", "keep": "outputs"}
            train(inputs, samples, folder, **shared, exclude_samples=frozenset(names[row == 0]), **told)
        outputs = np.load(folder / "outputs.npy")[tests].astype(float)
        measured[subset] = log_softmax(outputs, axis=1)[np.arange(len(tests)), labels[tests]]
    chosen_on, reported = halves(subsets, 1)
    rows = []
    for name, run in runs.items():
        predicted = kept @ run.view().influence().astype(float)
        found = {"all": lds(predicted, measured), "chosen_by": lds(predicted[chosen_on], measured[chosen_on], resamples=0)}
        found["reported"] = lds(predicted[reported], measured[reported])
        rows.append(
            {"method": name, **{which: {k: getattr(one, k) for k in ("mean", "low", "high")} for which, one in found.items()}}
        )
    best = max(rows[1:], key=lambda row: row["chosen_by"]["mean"], default=None)
    lines = [f"## {PUBLISHED}", ""]
    lines += [
        f"{len(names):,} digits to train on, {subsets} random halves, each trained on once; {len(tests)} tests. D1: raw within 0.03 of "
        f"0.33, which is the published score (dattri, arXiv 2410.04555), curvature at least 0.68. Each half is trained with a seed of its "
        f"own; `evaluate lds` trains all with one, so that what first weights do is no noise, and its scores are higher.",
        "",
        "| method | LDS, all halves | LDS, the half that no damping was chosen on |",
        "|---|---|---|",
    ]
    for row in rows:
        figures = [
            f"{row[which]['mean']:.3f} ({row[which]['low']:.3f} to {row[which]['high']:.3f})" for which in ("all", "reported")
        ]
        lines.append(f"| {row['method']}{', the best on the other half' if row is best else ''} | {' | '.join(figures)} |")
    return [*lines, ""], {"case": PUBLISHED, "rows": rows}


def computed(place: Workspace, recipe: Recipe, settings: dict[str, Any]) -> Run:
    """The recipe's run, trained and analysed unless that is there already."""
    folder = recipe.checkpoints.folder
    if not (folder / "training.json").exists():
        place.queue.wait(place.start_training(recipe, settings=settings, folder=folder).id)
    run = place.compute(recipe)
    assert isinstance(run, Run)
    return run


def steady(place: Workspace, name: str, count: int, seeds: int) -> tuple[list[str], dict[str, Any]]:
    """How far self-influences of seeds agree, singly and as means over half of them."""
    runs = [prepared(place, STEADY[name], count, seed) for seed in range(1, seeds + 1)]
    found = compare_runs(runs, "self_influence")
    pairs = found.pairs[["spearman", "overlap", "signs"]]
    lines = [f"## {name}: self-influence of digits by a network", ""]
    lines += [
        f"{seeds} seeds, {found.examples} training examples{', a tenth of them mislabelled' if STEADY[name] == 'mislabelled' else ''}. "
        f"E1 (digits a tenth of which are mislabelled, 5 seeds against 5 others): at least 0.97 and 0.90.",
        "",
    ]
    lines += ["| | rank correlation | overlap of the top 5 % (Jaccard) |", "|---|---|---|"]
    lines.append(
        f"| one seed against another, mean of {len(pairs)} pairs | {pairs['spearman'].mean():.3f} | {pairs['overlap'].mean():.3f} |"
    )
    if found.ensembles is not None:
        ways = f"means over half of the seeds, over {found.halvings} ways to divide them"
        lines.append(f"| {ways} | {found.ensembles['spearman']:.3f} | {found.ensembles['overlap']:.3f} |")
    return [*lines, ""], {"case": name, **{k: v for k, v in found.to_dict().items() if k != "noise"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--digits", type=int, default=5_000, help="a multiple of 50, at most 5,000; three fifths are trained on")
    parser.add_argument("--subsets", type=int, default=100, help="of digits; of recordings two fifths of it, trained twice")
    parser.add_argument("--ekfac", type=float, action="append", help=f"a damping of EKFAC to try; default: each of {DAMPINGS}")
    parser.add_argument("--stability", type=int, default=10, help="seeds")
    parser.add_argument("--stability-digits", type=int, default=3_000, help="digits of these runs")
    parser.add_argument("--only", choices=[*CASES, PUBLISHED, *STEADY], action="append")
    parser.add_argument("--workspace", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = open_workspace(options.workspace or Path(folder))
        for name in options.only or [*CASES, PUBLISHED, *STEADY]:
            told = (
                published(place, options.subsets, options.ekfac or DAMPINGS)
                if name == PUBLISHED
                else steady(place, name, options.stability_digits, options.stability)
                if name in STEADY
                else foretold(place, name, options.digits, options.subsets, options.ekfac or DAMPINGS)
            )
            print("\n".join(told[0]), flush=True)
            write_down(options.out, "faithfulness", in_words(options), "Do influences foretell training?", [told])


def in_words(options: argparse.Namespace) -> str:
    """The options as they are given."""
    asked = f"--digits {options.digits} --subsets {options.subsets} --stability {options.stability}"
    asked += f" --stability-digits {options.stability_digits}"
    asked += "".join(f" --ekfac {damping:g}" for damping in options.ekfac or [])
    return asked + "".join(f" --only '{name}'" for name in options.only or [])


if __name__ == "__main__":
    main()
