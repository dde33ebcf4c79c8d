"""How are the scores spread, and which pairs are in the tails?"""

import numpy as np
import streamlit as st

from pages.shared import examples, frame, session, widgets
from pages.shared.i18n import t
from tracin_core import charts

MARKS = (0.05, 0.5, 0.95)

with frame.page("page.distribution"):
    run = session.selected_run()
    view = session.view(run)
    with st.container(horizontal=True, gap="large"):
        score = widgets.choose_score(key="score")
        scale = widgets.choose_code("scale", charts.SCALES if score == "self_influence" else charts.SIGNED_SCALES, key="scale")
    values = widgets.score_values(view, score)
    bins = charts.histogram(values, scale)
    quantiles = charts.quantiles(values)
    figure = charts.histogram_figure(
        bins,
        x=t(f"score.{score}"),
        y=t("axis.pairs"),
        zeros=t("axis.zeros"),
        marks={f"{share:.0%}": quantiles[share] for share in MARKS},
    )
    widgets.chart(figure, key="distribution.histogram", alt=widgets.spread_in_words(values))
    st.markdown(widgets.spread_in_words(values))
    widgets.quantile_table(quantiles)
    st.subheader(t("distribution.tails"))
    tail = widgets.choose_code("tail", ("high", "low") if score == "self_influence" else ("low", "high"), key="tail")
    ranked = view.ranked(np.asarray(values), ascending=tail == "low")
    examples.explore(run, ranked, key=f"distribution.{score}.{tail}", columns=examples.score_columns(score))
