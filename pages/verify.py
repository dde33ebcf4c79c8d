"""Did leaving the list out help, or would any other list of that length have done the same?"""

import streamlit as st

from pages.shared import frame, session, verifying, widgets
from pages.shared.i18n import t

with frame.page("page.verify"):
    run = session.selected_run()
    st.markdown(t("verify.what"))
    if run.manifest.kind == "scores":
        widgets.nothing_matches(t("verify.imported"))
    else:
        session.view(run)  # what is damaged is told before anything long is started
        listed = verifying.choose_list(run)
        if listed is not None:
            verifying.start(run, listed)
        frame.running("retraining", run)
        verifying.results(run)
        verifying.foretold(run)
