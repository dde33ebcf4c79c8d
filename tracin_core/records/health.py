"""What speaks for and against a run's scores: the engine's checks of itself, dead tests, and what the training did beside it."""

from typing import TYPE_CHECKING, Final

import pandas as pd

if TYPE_CHECKING:
    from tracin_core.records.runs import Run

ADAM_FORMULA: Final = {
    form: (
        f"The scores divide gradients by Adam's denominator sqrt(v) + eps as it was at each checkpoint ({kept}); its momentum, its weight "
        f"decay and how the denominator itself moves are not part of them."
    )
    for form, kept in (("adam", "row and column means of each matrix"), ("adam_full", "entry by entry"))
}
EKFAC_FORMULA: Final = (
    "The scores multiply gradients by the inverse of the damped curvature of the training side at each checkpoint, (F + damping * mean "
    "eigenvalue)^-1 as EKFAC has it layer by layer, with a damping of {damping:g}. Methods that are made for plain kernels are refused."
)


def health_of(run: "Run") -> pd.DataFrame:
    """One row per check: check, passed, value (measured), detail in words.

    Dead tests are those under the recorded loss, at all checkpoints that a view sums.
    """
    view = run.view()
    dead = view.dead_tests
    named = ", ".join(view.test.table["id"][dead].head(3)) + (", ..." if dead.sum() > 3 else "")
    told = f"{dead.sum()} of {len(dead)} test {view.test.noun}s have no gradient under {run.loss.describe()}" + (
        f": {named}." if dead.any() else "."
    )
    own = [
        {"name": "dead_tests", "passed": not dead.any(), "value": float(dead.sum()), "detail": told},
        run.above_chance.told(),
    ]
    if run.damping is not None:
        told = EKFAC_FORMULA.format(damping=run.damping)
        own.append({"name": "ekfac_formula", "passed": True, "value": run.damping, "detail": told})
    elif run.precondition != "none":
        own.append({"name": "adam_formula", "passed": True, "value": 0.0, "detail": ADAM_FORMULA[run.precondition]})
    elif run.other_optimizer is not None:
        told = (
            f"The checkpoints are of a training by {run.other_optimizer}, which scales each parameter's step by its own history; the "
            f"scores are inner products of plain gradients, as steps of SGD would make them."
        )
        own.append({"name": "sgd_formula", "passed": False, "value": 1.0, "detail": told})
    listed = run.training_arguments.get("exclusions_file")
    if listed:
        told = f"The training left out what '{listed}' lists; these examples are scored here as if they had been trained on."
        own.append({"name": "exclusions", "passed": False, "value": 1.0, "detail": told})
    weighted = run.training_arguments.get("weighted_by")
    if weighted:
        told = f"The training weighed its examples by {weighted}; they are scored here as if each had counted in full."
        own.append({"name": "weights", "passed": False, "value": 1.0, "detail": told})
    checks = pd.DataFrame([*run.manifest.health, *own], columns=["name", "passed", "value", "detail"])
    return checks.rename(columns={"name": "check"})
