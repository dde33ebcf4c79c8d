"""Which score finds errors on this data?"""

import streamlit as st

from pages.shared import calibrating, frame, session, widgets
from pages.shared.i18n import t

with frame.page("page.calibrate"):
    run = session.selected_run()
    st.markdown(t("calibrate.what"))
    if run.manifest.kind == "scores":
        widgets.nothing_matches(t("calibrate.imported"))
    else:
        session.view(run)  # what is damaged is told before anything long is started
        widgets.recommended(run)
        calibrating.start(run)
        frame.running("calibration", run)
        calibrating.last_failure(run)
        calibrating.results(run)
