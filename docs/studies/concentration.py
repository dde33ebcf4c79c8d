"""Two claims of the lab: a tenth of the pairs matters for most tests, and GHM lists other pairs than the margin loss does.

    python docs/studies/concentration.py [--seeds 5] [--workspace FOLDER] [--out FOLDER]

SIMULATED recordings as mean spectra, a small network trained to rank their angles with the margin loss, once per seed. (1) What the tenth
of the training pairs with the largest sums of |influence| carries of each live test; the claim would be that it carries half or more of
80 % of them. Beside it a tenth of each test's own, which is a bound. (2) Six trainings without that tenth, and without a random tenth,
each against one of the same seed with all pairs: the share of the test pairs whose margin moves, |t| > 2.57 over the six. Only the
difference of the two says anything of the tenth. (3) Self-influence of the same run under GHM and under the margin loss: rank correlation
and shared tops, which no scale changes. Means over seeds with 95 % t intervals. Writes `concentration.md` and `.json`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from cases import angles, write_down  # noqa: E402

from tracin_core.engine.training import train  # noqa: E402
from tracin_core.reading import reader_of  # noqa: E402
from tracin_core.recipe import Recipe  # noqa: E402
from tracin_core.records.calibrations import calibration_settings  # noqa: E402
from tracin_core.records.runs import Run  # noqa: E402
from tracin_core.records.workspace import Workspace, open_workspace  # noqa: E402
from tracin_core.scores.agreement import ghm_and_margin  # noqa: E402
from tracin_core.scores.evaluation import interval  # noqa: E402
from tracin_core.scores.shares import concentration  # noqa: E402

HALF: Final = 0.5
TENTH: Final = 0.1
TRAININGS: Final = 6
MOVED: Final = 2.57  # |t|
MARGIN: Final = 10.0  # of scores that differ by about that: many pairs stay active, as in the lab
FIGURES: Final = {
    "top_carries": "share of the absolute influence on a live test that the tenth carries, mean over tests",
    "own_top_carries": "the same of each test's own tenth",
    "tests_half": "tests of which the tenth carries half or more",
    "needed_share": "share of the pairs that 80 % of the absolute influence on a test needs, mean over tests",
    "live": "tests with a gradient",
    "moved": "test pairs whose margin moves without the tenth",
    "moved_random": "test pairs whose margin moves without a random tenth",
    "moved_more": "the difference",
    "spearman": "GHM and margin: rank correlation of self-influence",
    "top_50": "GHM and margin: shared among the 50 highest",
}


def of_seed(place: Workspace, seed: int) -> dict[str, float]:
    """Every figure of one training."""
    recipe, settings = angles(place, "margin")
    folder = place.root / "trainings" / f"concentration_{seed}"
    told = recipe.to_dict()
    told |= {
        "task": {**told["task"], "margin": MARGIN},
        "name": f"SIMULATED angles, seed {seed}",
        "checkpoints": {"folder": str(folder)},
    }
    recipe = Recipe.from_dict(told)
    if not (folder / "training.json").exists():
        place.queue.wait(place.start_training(recipe, settings={**settings, "seed": seed}, folder=folder).id)
    run = place.compute(recipe)
    assert isinstance(run, Run)
    view = run.view()
    tests = concentration(view).tests
    both = ghm_and_margin(run.view(loss="ghm", margin=MARGIN, ghm_bins=10, ghm_alpha=0.75), run.view(loss="margin", margin=MARGIN))
    return {
        "top_carries": float(tests["top_carries"].mean()),
        "own_top_carries": float(tests["own_top_carries"].mean()),
        "tests_half": float((tests["top_carries"] >= HALF).mean()),
        "needed_share": float(tests["needed_share"].mean()),
        "live": float(np.mean(~view.dead_tests)),
        **moved(place, run, seed),
        "spearman": float(both.spearman),
        "top_50": float(both.overlap.set_index("k").loc[50, "overlap"]),
    }


def moved(place: Workspace, run: Run, seed: int) -> dict[str, float]:
    """Shares of the test pairs whose margin another training without some pairs moves: the tenth, and as many at random."""
    view = run.view()
    pairs = [frozenset(ends) for ends in view.train_pairs[["id1", "id2"]].to_numpy()]
    count = round(TENTH * len(pairs))
    heaviest = np.argsort(-np.abs(view.influence()).sum(axis=1), kind="stable")[:count]
    drawn = np.random.default_rng([seed, 2]).choice(len(pairs), count, replace=False)
    inputs = reader_of(place, run.recipe.data).read(run.samples)
    settings, _ = calibration_settings(run)
    rows = {name: row for row, name in enumerate(run.samples["id"])}
    tests = view.test_pairs
    ends = [np.array([rows[name] for name in tests[end]]) for end in ("id1", "id2")]

    def margins(without: np.ndarray, training: int) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            train(
                inputs,
                run.samples,
                Path(folder),
                model=run.recipe.model,
                task=run.recipe.task,
                exclude_pairs=frozenset(pairs[row] for row in without),
                keep="outputs",
                **{**settings, "save_epochs": (settings["epochs"],), "seed": 100 * seed + training},
            )
            outputs = np.load(Path(folder) / "outputs.npy")
        return np.asarray(tests["target"].to_numpy() * (outputs[ends[0]] - outputs[ends[1]]))

    found = {}
    whole = [margins(np.array([], dtype=int), training) for training in range(TRAININGS)]
    for name, without in (("moved", heaviest), ("moved_random", drawn)):
        change = np.array([margins(without, training) - whole[training] for training in range(TRAININGS)])
        spread = change.std(axis=0, ddof=1) / np.sqrt(TRAININGS)
        found[name] = float(np.mean(np.abs(change.mean(axis=0)) > MOVED * spread))
    return {**found, "moved_more": found["moved"] - found["moved_random"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workspace", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = open_workspace(options.workspace or Path(folder))
        table = pd.DataFrame([of_seed(place, seed) for seed in range(1, options.seeds + 1)])
    found: dict[str, Any] = {name: interval(table[name]) for name in FIGURES}
    lines = ["| figure | mean over seeds | from | to |", "|---|---|---|---|"]
    lines += [
        f"| {told} | {found[name].mean:.3f} | {found[name].low:.3f} | {found[name].high:.3f} |" for name, told in FIGURES.items()
    ]
    print("\n".join(lines))
    told = {"case": "angles", "figures": FIGURES, "seeds": table.to_dict("records")}
    text = ["## angles (SIMULATED)", "", *lines, ""]
    write_down(
        options.out, "concentration", f"--seeds {options.seeds}", "A tenth of the pairs, and GHM against margin", [(text, told)]
    )


if __name__ == "__main__":
    main()
