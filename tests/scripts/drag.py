"""The dragged threshold alone, with known scores: 50 pairs at -50, -49, ..., -1, and 10 that are exactly 0; `?above=1`: of their sizes."""

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import session
from pages.shared.threshold import dragging
from tracin_core import charts
from tracin_core.scores.levels import Levels

above = "above" in st.query_params
scores = np.concatenate([np.arange(-50.0, 0.0), np.zeros(10)]) * (-1 if above else 1)
st.session_state["runs"] = st.session_state.get("runs", 0) + 1
threshold = st.number_input("T", **session.linked("T", 10.0 if above else -10.0))
bins = charts.histogram(scores, "linear", bins=50)
steps = dragging.steps_above(bins.axis, threshold, 101) if above else charts.threshold_steps(bins.axis, threshold, steps=101)
levels = Levels(pd.DataFrame({"id": np.arange(60)}), scores, scores, np.repeat(scores, 2), scores, above=above)
places = np.arange(60) % 3  # the cell of each pair: every third one is of the same angles
grid = pd.DataFrame({"low": [0, 0, 36], "high": [36, 72, 72], "n": [20, 20, 20]})
dragging.drag_threshold(
    "drag",
    bins,
    levels.counts(steps),
    value=threshold,
    total=60,
    scores="Bars: scores.",
    on_release=lambda value: session.choose("T", value),
    cells=dragging.Cells(grid, levels.in_cells(places, 3, steps)),
    above=above,
)
st.write(f"runs: {st.session_state['runs']}, threshold: {threshold:g}")
