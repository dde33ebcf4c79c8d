"""The dragged threshold alone, with known scores: 50 pairs at -50, -49, ..., -1, and 10 that are exactly 0."""

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import dragging, session
from tracin_core import charts

scores = np.concatenate([np.arange(-50.0, 0.0), np.zeros(10)])
st.session_state["runs"] = st.session_state.get("runs", 0) + 1
threshold = st.number_input("T", max_value=0.0, **session.linked("T", -10.0))
bins = charts.histogram(scores, "linear", bins=50)
thresholds = charts.threshold_steps(bins.axis, threshold, steps=101)
counts = np.searchsorted(np.sort(scores), thresholds)
steps = pd.DataFrame({"threshold": thresholds, "pairs": counts, "samples": 2 * counts})
dragging.drag_threshold(
    "drag", bins, steps, value=threshold, total=60, scores="Bars: scores.", on_release=lambda value: session.choose("T", value)
)
st.write(f"runs: {st.session_state['runs']}, threshold: {threshold:g}")
