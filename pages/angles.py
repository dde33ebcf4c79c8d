"""Which pairs of angles, or which groups, carry the scores, and which help or harm which?"""

import streamlit as st

from pages.shared import cells, frame, grouping, session, widgets
from pages.shared.i18n import t

with frame.page("page.angles"):
    run = session.selected_run()
    view = session.view(run)
    look = widgets.choose_code("grid", cells.LOOKS, key="grid")
    if look == "onto":
        widgets.require(run, "influence")
        st.markdown(t("grid.onto.why"))
        grouping.matrix(view, grouping.choose_column(view, key="by"))
    else:
        with st.container(horizontal=True, gap="medium"):
            score = widgets.choose_score(key="score")
            statistic = widgets.choose_code("statistic", ("mean", "median", "share"), key="statistic")
            part = grouping.choose_part(view)
        cells.explore(run, view, score, statistic, part)
