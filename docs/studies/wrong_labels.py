"""Which score finds planted errors? Digits, clothes and voices with wrong labels, simulated recordings with wrong angles or turned pairs.

    python docs/studies/wrong_labels.py [--seeds 5] [--pictures 3000] [--only CASE] [--workspace FOLDER] [--out FOLDER]

Each case makes its data, trains a small network (one hidden layer of 128, or none; 257-32-1 on mean spectra), analyses it, and asks for
`evaluate calibrate`: 10 % errors are planted in a copy of the training side, once per seed with other errors and other weights, and every
score is judged by how early it lists them (docs/maths.md): in figures, and as curves of what is found by what is looked at. Writes
`wrong-labels.md` and `wrong-labels.json` beside this file (`wrong-labels-5000` with `--pictures 5000`), in which cases that were not asked
for stay. What was computed in the workspace before is not computed again.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from cases import angles, digits, fashion, small_digits, voices, write_down  # noqa: E402

from tracin_core.recipe import Recipe  # noqa: E402
from tracin_core.records.calibrations import Calibration, calibrations, found_by_share, start_calibration  # noqa: E402
from tracin_core.records.runs import Run  # noqa: E402
from tracin_core.records.workspace import Workspace, open_workspace  # noqa: E402

Noise = Literal["labels", "pair_flips"]
# case -> what is planted, and what is aimed at: a figure of the recommended score, or of one by name
CASES: Final[dict[str, tuple[Noise, dict[tuple[str, str], float]]]] = {
    "digits": (
        "labels",
        {
            ("self_influence", "auroc"): 0.99,
            ("self_influence", "recovery_10"): 0.85,
            ("self_influence", "recovery_20"): 0.985,
            ("recommended", "auroc"): 0.99,
        },
    ),
    "digits, linear": ("labels", {("best", "auroc"): 0.988}),
    "fashion": ("labels", {("recommended", "auroc"): 0.98}),
    "voices": ("labels", {("recommended", "auroc"): 0.99}),
    "small digits": ("labels", {("recommended", "auroc"): 0.997}),
    "angles": ("labels", {("recommended", "auroc"): 0.90, ("recommended", "recovery_20"): 0.80}),
    "flips": ("pair_flips", {("recommended", "auroc"): 0.99}),
}
DRAWN: Final = (
    "self_influence",
    "self_influence.curvature",
    "mean_influence.curvature",
    "self_influence.representer_points",
    "mean_loss",
)
PICTURES: Final = 3_000
LOOKED: Final = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
SHOWN: Final = ("auroc", "average_precision", "recovery_10", "recovery_20", "recovery_30")


PREPARED: Final[dict[str, Callable[[Workspace, int], tuple[Recipe, dict[str, Any]]]]] = {
    "digits": digits,
    "digits, linear": lambda place, count: digits(place, count, ()),
    "fashion": fashion,
    "voices": lambda place, _: voices(place),
    "small digits": lambda place, _: small_digits(place),
    "angles": lambda place, _: angles(place, "logistic"),
    "flips": lambda place, _: angles(place, "margin"),
}


# ---- what is asked --------------------------------------------------------------------------------------------------------------


def judged(place: Workspace, case: str, count: int, seeds: int) -> tuple[Calibration, float]:
    """The calibration of this case, trained, analysed and judged unless that is there already; and how many seconds it took then."""
    recipe, settings = PREPARED[case](place, count)
    folder = Path(str(recipe.checkpoints.folder))
    if not (folder / "training.json").exists():
        place.queue.wait(place.start_training(recipe, settings=settings, folder=folder).id)
    run = place.compute(recipe)
    assert isinstance(run, Run)
    job = place.queue.wait(start_calibration(place, run, noise=CASES[case][0], share=0.1, seeds=seeds).id)
    number = (job.result or {})["calibration"]
    jobs = [job for job in place.jobs(limit=1_000) if (job.result or {}).get("calibration") == number]
    seconds = max((job.finished or 0.0) - (job.started or 0.0) for job in jobs)
    return next(found for found in calibrations(place, run) if found.number == number), seconds


def tables(place: Workspace, case: str, found: Calibration, seconds: float) -> tuple[list[str], dict[str, Any]]:
    """The case in Markdown, and in plain values."""
    drawn = found_by_share(place, found, [score for score in DRAWN if score in found.scores], LOOKED)
    summary = found.summary()
    told = found.recommendation()
    errors = f"{int(found.trainings['wrong'].min())} of {int(found.trainings['examples'].min())} training {found.unit}s"
    lines = [f"## {case}{' (SIMULATED)' if found.simulated else ''}", ""]
    lines += [f"{errors} made wrong; means over {len(found.seeds)} seeds with 95 % intervals; {seconds / 60:.1f} minutes.", ""]
    lines += ["| score | " + " | ".join(SHOWN) + " | reliable |", "|---" * (len(SHOWN) + 2) + "|"]
    for row in summary.to_dict("records"):
        cells = [f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})" for name in SHOWN]
        lines.append(f"| {row['score']} | " + " | ".join(cells) + f" | {'yes' if row['reliable'] else 'no'} |")
    lines += ["", f"Recommended: **{told.score or 'none'}**.", ""]
    aims = []
    for (score, figure), aim in CASES[case][1].items():
        best = summary.loc[summary[figure].idxmax(), "score"]
        named = {"recommended": told.score, "best": best}.get(score, score)
        reached = None if named is None else float(summary.set_index("score").at[named, figure])
        aims.append({"score": score, "figure": figure, "aim": aim, "reached": reached})
        verdict = "not reached" if reached is None or reached < aim else "reached"
        measured = "nothing" if reached is None else f"{reached:.3f}"
        lines.append(
            f"* {score}{f' ({named})' if named != score else ''}, {figure}: aimed at {aim:.3f}, measured {measured}: {verdict}."
        )
    lines += ["", "Share of the errors found by the share looked at:", ""]
    lines += ["| score | " + " | ".join(f"{share:.0%}" for share in LOOKED) + " |", "|---" * (len(LOOKED) + 1) + "|"]
    lines += [f"| {score} | " + " | ".join(f"{value:.3f}" for value in drawn[score]) + " |" for score in drawn]
    lines += [f"| chance | {' | '.join(f'{share:.3f}' for share in LOOKED)} |"]
    return [*lines, ""], {
        "case": case,
        "curves": drawn.to_dict(),
        "seconds": seconds,
        "aims": aims,
        "summary": summary.to_dict("records"),
        "recommended": told.score,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--pictures",
        type=int,
        default=PICTURES,
        help="of digits and clothes: a multiple of 50, at most 5,000; three fifths are trained on",
    )
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--workspace", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = open_workspace(options.workspace or Path(folder))
        asked = f"--seeds {options.seeds} --pictures {options.pictures}" + "".join(
            f" --only '{case}'" for case in options.only or []
        )
        suffix = "" if options.pictures == PICTURES else f"-{options.pictures}"
        for case in options.only or CASES:
            told = tables(place, case, *judged(place, case, options.pictures, options.seeds))
            print("\n".join(told[0]), flush=True)
            write_down(options.out, "wrong_labels", asked, "Which score finds planted errors?", [told], suffix)


if __name__ == "__main__":
    main()
