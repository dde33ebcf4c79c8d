"""What did we find and decide, and what is to be told of this run in one file that opens without a server?"""

import streamlit as st

from pages.shared import frame, past, reporting, saving, session
from pages.shared.i18n import LANGUAGES, t

with frame.page("page.findings"):
    st.subheader(t("finding.views"))
    saving.listed(frame.page_link)
    st.subheader(t("past"))
    past.lists()
    st.subheader(t("report"))
    run = session.selected_run()
    session.view(run)  # a damaged block is told here, where there is room for advice, and not by a failed download
    st.markdown(t("report.what"))
    picker = session.linked("report", st.session_state["lang"], valid=LANGUAGES, quiet=True)
    language = st.segmented_control(
        t("report.language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, required=True, **picker
    )
    reporting.download(run, str(language))
    st.markdown(f":small[{t('report.forms')}]")
