"""How quick questions about scores are, from kernels that are there. One line of JSON for each size.

    python benchmarks/what_if.py [--repeats 5] [--samples 2000]

*large*: 2,000 training samples (1.67 million pairs), 500 test pairs, 6 checkpoints. Timed are questions about one test pair, one sample and
self-influence, each after the first (which forms what the later ones share: `prepared`), and the threshold sweep: prepared once, then
counted at single thresholds. *lab*: 154 training and 66 validation samples, 240 test pairs. Kernels and outputs are SIMULATED. As a
check, the same answers at a small size are computed naively: one explicit gradient per pair, one comparison per score.
"""

import argparse
import resource
from collections.abc import Callable
from itertools import combinations
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from common import report

from tracin_core.data.samples import all_pairs, every_draw, stratified_pairs
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss, pair_derivative
from tracin_core.scores.view import View

CHECKPOINTS, CLASSES, PARAMETERS, MARGIN = 6, 6, 40, 10.0
Side = tuple[pd.DataFrame, np.ndarray, np.ndarray]  # samples, output gradients [C, n, P], outputs [C, n]


def side(count: int, prefix: str, seed: int) -> Side:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    samples = pd.DataFrame({"id": [f"{prefix}_{place:04d}" for place in range(count)], "label": labels, "angle": 36 * labels})
    gradients = generator.normal(size=(CHECKPOINTS, count, PARAMETERS)).astype(np.float32)
    outputs = 3 * labels + 8 * generator.normal(size=(CHECKPOINTS, count))
    return samples, gradients, outputs.astype(np.float32)


def view_of(train: Side, test: Side, tests: int | None) -> View:
    def products(left: Side, right: Side) -> np.ndarray:
        return (left[1] @ right[1].transpose(0, 2, 1))[:, None]

    pairs = all_pairs(test[0])
    return View.of_pairs(
        all_pairs(train[0]),
        pairs if tests is None else stratified_pairs(pairs, tests),
        Kernels(products(train, train), products(test, train), products(test, test), train[2], test[2]),
        loss=PairLoss(margin=MARGIN),
        checkpoint_weights=np.ones(CHECKPOINTS),
        checkpoint_names=[f"epoch {place + 1}" for place in range(CHECKPOINTS)],
        train_samples=train[0],
        test_samples=test[0],
    )


def questions(view: View) -> dict[str, Callable[[], Any]]:
    """What a page asks while somebody waits."""
    tests, pairs = view.test_pairs["id"].tolist(), view.train_pairs["id"]
    test, pair = tests[len(tests) // 2], str(pairs.iloc[len(pairs) // 2])
    labels = range(CLASSES)
    asked: dict[str, Callable[[], Any]] = {
        "influence of all on one test": lambda: view.influence(test),
        "20 proponents and opponents": lambda: view.top(test, 20),
        "contributions of one pair": lambda: view.contributions(pair, test),
        "self-influence": view.self_influence,
        "50 highest by self-influence": lambda: view.ranked(view.self_influence(), k=50),
        "influence of one sample on all tests": lambda: view.sample_influence()[0],
        "count at a threshold": lambda: sweep.counts([threshold]),
    }
    sweep, threshold = view.sweep(3), view.suggested_threshold(3)
    if len(pairs) < 50_000:
        draws = every_draw(len(view.train_samples))
        asked |= {
            "sweep, new view of all counts": lambda: view.sweep(3).counts(np.linspace(threshold, 0, 200)),
            "exclusion list": lambda: view.exclusions(threshold, 3, 50),
            "exclusion list, both samples": lambda: view.exclusions(threshold, 3, 50, "full_pair"),
            "exclusion list, samples": lambda: view.exclusions(threshold, 3, 50, "sample"),
            "all other labels, one test": lambda: view.relabel_effects(draws, labels, test),
            "mean influence": view.mean_influence,
            "angle grid": lambda: view.angle_grid(view.self_influence()),
        }
    return asked


def timed(work: Callable[[], Any]) -> float:
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)


def measure(name: str, view: View, repeats: int, target: str) -> None:
    prepared = timed(lambda: (view.influence(view.test_pairs["id"].iloc[0]), view.self_influence(), view.sample_influence()))
    blocks: list[tuple[int, int]] = []
    sweep = timed(lambda: view.sweep(3, progress=lambda done, total: blocks.append((done, total))))
    middle = {}
    for question, work in questions(view).items():
        work()
        middle[question] = float(np.median([timed(work) for _ in range(repeats)]))
    report(
        f"what_if {name}",
        data=f"SIMULATED kernels: {len(view.train_samples)} + {len(view.test_samples)} samples, {CHECKPOINTS} checkpoints",
        train_pairs=len(view.train_pairs),
        test_pairs=len(view.test_pairs),
        prepared_ms=prepared,
        sweep_prepared_ms=sweep,
        sweep_progress_told=len(blocks),
        milliseconds=middle,
        slowest_ms=max(middle.values()),
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        target=target,
    )


def checked() -> None:
    """Explicit gradients and plain comparisons at a small size give the same answers.

    Raises:
        SystemExit: they do not.
    """
    train, test = side(18, "a", 3), side(12, "x", 4)
    view = view_of(train, test, None)

    def gradients(one: Side, pairs: pd.DataFrame) -> np.ndarray:
        rows = []
        for first, second, target in pairs[["first", "second", "target"]].itertuples(index=False):
            slope = pair_derivative(PairLoss(margin=MARGIN), one[2][:, first], one[2][:, second], np.full(CHECKPOINTS, target))
            rows.append((slope[:, None] * (one[1][:, first].astype(float) - one[1][:, second])).ravel())
        return np.stack(rows)

    ours, theirs = gradients(train, view.train_pairs), gradients(test, view.test_pairs)
    scores = ours @ theirs.T
    threshold = view.suggested_threshold(3)
    chosen = {pair for pair, row in zip(view.train_pairs["id"], scores, strict=True) if sum(row < threshold) >= 3}
    touched = {sample for pair in combinations(train[0]["id"], 2) if "_".join(pair) in chosen for sample in pair}
    counts = view.sweep(3).counts([threshold]).iloc[0]
    right = (
        np.allclose(view.influence(), scores, rtol=1e-4, atol=1e-3)
        and np.allclose(view.self_influence(), (ours**2).sum(axis=1), rtol=1e-4, atol=1e-3)
        and (counts["pairs"], counts["samples"]) == (len(chosen), len(touched))
        and set(view.exclusions(threshold, 3, None)["id"]) == chosen
    )
    if not right:
        raise SystemExit("what_if: the quick answers differ from the naive ones at 18 + 12 samples.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000, help="training samples of the large case")
    options = parser.parse_args()
    checked()
    measure("lab", view_of(side(154, "a", 0), side(66, "x", 1), 240), options.repeats, "every question at most 50 ms")
    view = view_of(side(options.samples, "a", 0), side(300, "x", 1), 500)
    measure("large", view, options.repeats, "questions 100 ms, sweep 60,000 ms, count 20 ms, 2 GiB")


if __name__ == "__main__":
    main()
