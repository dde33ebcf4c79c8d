"""How are the scores spread: over all, within groups, against what they do to the tests, and on a map?"""

import streamlit as st

from pages.shared import frame, grouping, session, spread, widgets

with frame.page("page.distribution"):
    run = session.selected_run()
    view = session.view(run)
    widgets.recommended(run)
    look = widgets.choose_code("look", spread.LOOKS, key="look")
    with st.container(horizontal=True, gap="medium"):
        score = widgets.choose_score(key="score")
        scale = spread.choose_scale(score)
        part = grouping.choose_part(view)
    spread.DRAWN[look](run, view, score, scale, part)
    if look == "spread":
        spread.tails(run, view, score, part)
