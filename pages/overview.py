"""Is this run sound, and where to look first?"""

import streamlit as st

from pages.shared import cells, examples, frame, session, widgets
from pages.shared.i18n import t
from tracin_core import charts

FIRST = 5

with frame.page("page.overview"):
    run = session.selected_run()
    view = session.view(run)
    widgets.recommended(run)
    widgets.key_figures(run, view)
    widgets.health(run)
    spread, grid = st.columns(2, gap="large")
    widgets.require(run, "self_influence")
    own = view.self_influence()
    with spread:
        st.subheader(t("overview.spread"))
        bins = charts.histogram(own)
        figure = charts.histogram_figure(bins, x=t("score.self_influence"), y=t("axis.pairs"), zeros=t("axis.zeros"))
        widgets.chart(figure, key="overview.spread", alt=widgets.spread_in_words(own))
        frame.page_link("distribution", t("overview.more"), icon=":material/arrow_forward:")
    with grid:
        st.subheader(t("overview.grid"))
        cell = cells.doorway(view, own)
        if cell is not None:
            frame.go_to("angles", cell=cell)
        frame.page_link("angles", t("overview.grid.more"), icon=":material/arrow_forward:")
    st.subheader(t("overview.first"))
    st.markdown(t("overview.first.why"))
    hardest = view.ranked(own)
    examples.explore(run, hardest, key="overview.first", columns=examples.score_columns("self_influence"), rows=FIRST)
    widgets.planted_faults(run, hardest)
