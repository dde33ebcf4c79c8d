"""Jobs that put scores to the test: a list by retraining without it, every score by errors planted on purpose, influences by subsets."""

from tracin_core.evaluating.calibrating import calibrate
from tracin_core.evaluating.faithfulness import faithfulness
from tracin_core.evaluating.retraining import retrain

__all__ = ["calibrate", "faithfulness", "retrain"]
