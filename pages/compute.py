"""Get scores: choose checkpoints and recordings, see what they are, start, watch."""

import streamlit as st

from pages.shared import computing, frame
from pages.shared.i18n import t

with frame.page("page.compute"):
    st.markdown(t("compute.intro"))
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader(t("compute.checkpoints"))
        checkpoints = computing.choose_checkpoints()
    with right:
        st.subheader(t("compute.recordings"))
        data = computing.choose_recordings()
    if checkpoints is not None:
        computing.inspection(checkpoints)
    if checkpoints is not None and data is not None:
        st.subheader(t("compute.start"))
        computing.start(checkpoints, data)
    st.subheader(t("compute.jobs"))
    computing.jobs()
