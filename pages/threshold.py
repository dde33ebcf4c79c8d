"""What is left out of the next training, and what would be lost with it?"""

import streamlit as st

from pages.shared import charts, exclusion, frame, session, widgets
from pages.shared.i18n import t

with frame.page("page.threshold"):
    run = session.selected_run()
    view = session.view(run)
    mode, occurrences, most = exclusion.choose_rule(view)
    sweep = view.sweep(occurrences, mode)
    if not (sweep.pairs < 0).any():
        widgets.nothing_matches(t("threshold.nothing", occurrences=occurrences, tests=len(view.test_pairs)))
    else:
        suggested = view.suggested_threshold(occurrences, mode)
        threshold = exclusion.choose_threshold(suggested)
        bins = charts.histogram(sweep.pairs)
        widgets.drag_threshold(
            "drag",
            bins,
            sweep.counts(charts.threshold_steps(bins.axis, threshold)),
            value=threshold,
            total=len(sweep.pairs),
            on_release=lambda moved: session.choose("T", moved),
        )
        chosen = view.exclusions(threshold, occurrences, most, mode)
        exclusion.receipt(run, view, chosen, sweep.counts(threshold).iloc[0])
        rule = {"threshold": threshold, "min_occurrences": occurrences, "max_exclusions": most, "pair_mode": mode}
        left, right = st.columns([3, 2], gap="large")
        with left:
            st.subheader(t("threshold.list"))
            exclusion.preview(chosen)
        with right:
            st.subheader(t("threshold.export"))
            exclusion.export(run, chosen, rule)
