"""Jobs that put scores to the test: a list by retraining without it, and every score by errors that were planted on purpose."""

from tracin_core.evaluating.calibrating import calibrate
from tracin_core.evaluating.retraining import retrain

__all__ = ["calibrate", "retrain"]
