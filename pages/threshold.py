"""What is left out of the next training, and what would be lost with it?"""

import streamlit as st

from pages.shared import dragging, exclusion, frame, session, widgets
from pages.shared.i18n import t
from tracin_core import charts

with frame.page("page.threshold"):
    run = session.selected_run()
    view = session.view(run)
    widgets.require(run, "influence")
    mode, occurrences, most = exclusion.choose_rule(view)
    sweep = view.sweep(occurrences, mode)
    if not (sweep.pairs < 0).any():
        widgets.nothing_matches(t("threshold.nothing", occurrences=occurrences, tests=len(view.test_pairs)))
    else:
        suggested = view.suggested_threshold(occurrences, mode)
        threshold = exclusion.choose_threshold(suggested)
        bins = charts.histogram(sweep.pairs)
        dragging.drag_threshold(
            "drag",
            bins,
            sweep.counts(charts.threshold_steps(bins.axis, threshold)),
            value=threshold,
            total=len(sweep.pairs),
            scores=t("drag.scores.sample" if mode == "sample" else "drag.scores", occurrences=occurrences),
            on_release=lambda moved: session.choose("T", moved),
        )
        rule = {"threshold": threshold, "min_occurrences": occurrences, "max_exclusions": most, "pair_mode": mode}
        chosen = view.exclusions(**rule)
        exclusion.receipt(run, view, chosen, sweep.counts(threshold).iloc[0], rule)
        with st.container(horizontal=True, gap="large"):  # below each other where there is no room
            left, right = st.container(width=520), st.container(width=350)
        with left:
            st.subheader(t("threshold.list"))
            exclusion.preview(chosen, mode)
        with right:
            st.subheader(t("threshold.export"))
            exclusion.export(run, chosen, rule)
