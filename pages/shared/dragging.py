"""The threshold that is dragged: what it would leave out is told in the browser, and the server hears of it when it is let go."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import streamlit as st

from pages.shared.i18n import t, template
from pages.shared.widgets import asset
from tracin_core import charts


def drag_threshold(
    key: str,
    histogram: charts.Histogram,
    steps: pd.DataFrame,
    *,
    value: float,
    total: int,
    scores: str,
    on_release: Callable[[float], None],
) -> None:
    """A histogram whose threshold follows the mouse, or the keyboard, with exact counts and no word to the server until it is let go.

    Args:
        histogram: of the scores that the threshold is compared with, so that the bars left of the line are what is counted.
        steps: as `Sweep.counts` gives it: threshold, pairs, samples; ascending; must hold a row for `value`.
        value: where the threshold stands, and what the counts are shown for until it is moved.
        total: how many pairs there are.
        scores: what the bars are, in words.
        on_release: called with the new threshold, before the page is drawn again.
    """
    steps = steps.drop_duplicates("threshold").sort_values("threshold", ignore_index=True)
    start = int(steps["threshold"].sub(value).abs().to_numpy().argmin())

    def released() -> None:
        threshold = st.session_state[key]["threshold"]
        if threshold is not None:
            on_release(float(threshold))

    _drag()(
        key=key,
        data={
            **histogram.to_dict(),
            "thresholds": steps["threshold"].tolist(),
            "places": [histogram.place(threshold) for threshold in steps["threshold"]],
            "pairs": steps["pairs"].tolist(),
            "samples": steps["samples"].tolist(),
            "start": start,
            "total": total,
            "labels": {name: template(f"drag.{name}") for name in ("name", "picture", "count", "zeros")}
            | {"hint": f"{scores} {t('drag.hint')}"},
        },
        on_threshold_change=released,
    )


@cache
def _drag() -> Callable[..., Any]:
    return st.components.v2.component(
        "threshold_drag", html=asset("threshold_drag.html"), css=asset("threshold_drag.css"), js=asset("threshold_drag.js")
    )
