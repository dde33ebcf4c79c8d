"""Train a model with the checkpoints that influence needs: as the run in view was, or on other data."""

import streamlit as st

from pages.shared import frame, trained, training
from pages.shared.i18n import t

with frame.page("page.train"):
    st.markdown(t("train.what"))
    asked = training.choose()
    if asked is not None:
        training.start(asked)
    st.subheader(t("train.trainings"))
    trained.under_way()
    trained.results()
