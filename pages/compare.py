"""Do two runs, losses, subsets of checkpoints or methods say the same of the same examples?"""

import streamlit as st

from pages.shared import comparing, frame, session

with frame.page("page.compare"):
    run = session.selected_run()
    question = comparing.choose(run)
    if question is not None:
        found = comparing.compared(question)
        if question.by == "run":
            comparing.what_differs(question)
        if comparing.matched(question, found):
            seeds = comparing.noise(question)
            comparing.noise_in_words(question, found, seeds)
            with st.container(horizontal=True, gap="medium"):  # below each other where there is no room
                left, right = st.container(width=455), st.container(width=440)
            with left:
                comparing.overlap(question, found, seeds)
            with right:
                comparing.scatter(question, found)
            comparing.movers(run, question, found)
            comparing.lists(run, question, found)
