"""Which pairs of angles carry the scores?"""

import streamlit as st

from pages.shared import examples, frame, session, widgets
from pages.shared.i18n import t
from tracin_core import charts

with frame.page("page.angles"):
    run = session.selected_run()
    view = session.view(run)
    with st.container(horizontal=True, gap="large"):
        score = widgets.choose_score(key="score")
        statistic = widgets.choose_code("statistic", ("mean", "median"), key="statistic")
    values = widgets.score_values(view, score)
    cells = view.angle_grid(values)
    with st.container(horizontal=True, gap="large"):  # below each other where there is no room
        left, right = st.container(width=440), st.container(width=430)
    with right:
        cell = widgets.choose_cell(cells, key="cell", label=t("angles.cell"))
    with left:
        figure = charts.grid_figure(
            cells, statistic, x=t("angles.larger"), y=t("angles.smaller"), name=t(f"statistic.{statistic}"), chosen=cell
        )
        widgets.grid(cells, figure, key="cell", alt=widgets.grid_in_words(cells, statistic))
        st.markdown(widgets.grid_in_words(cells, statistic))
    with right:
        pairs = view.ranked(values, ascending=score != "self_influence", cell=cell)
        examples.explore(
            run, pairs, key=f"angles.{score}.{cell}", columns=examples.score_columns(score, percentile=False), sounds=False
        )
    if run.noun == "sample":
        widgets.group_matrix(view)
