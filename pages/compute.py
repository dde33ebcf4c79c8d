"""Get scores: choose data and checkpoints, see what they are, start, watch."""

import streamlit as st

from pages.shared import choosing, computing, frame, uploads
from pages.shared.i18n import t

with frame.page("page.compute"):
    st.markdown(t("compute.intro"))
    uploads.offer("compute", on_new=choosing.places.clear)
    computing.offer_recipe()
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader(t("compute.data"))
        data = choosing.choose_data()
        task = {} if data is None else choosing.choose_task(data)
    with right:
        st.subheader(t("compute.checkpoints"))
        checkpoints = computing.choose_checkpoints(data, task.get("kind", ""))
    if checkpoints is not None and data is not None:
        computing.inspection(checkpoints)
        st.subheader(t("compute.start"))
        computing.start(checkpoints, data, task)
    st.subheader(t("compute.jobs"))
    computing.jobs()
