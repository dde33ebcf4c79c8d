"""What is left out of the next training, and what would be lost with it?"""

import streamlit as st

from pages.shared import frame, session, widgets
from pages.shared.i18n import t
from pages.shared.threshold import exclusion, exporting, foretelling, surface, verdicts

with frame.page("page.threshold"):
    run = session.selected_run()
    view = session.view(run)
    widgets.require(run, "influence")
    rule = exclusion.choose_rule(view)
    if exclusion.has_line(view, rule):
        line = exclusion.choose_line(view, rule)
        exclusion.drag(view, line)
        told = session.workspace().verdicts(run)
        chosen, final = exclusion.decided(run, view, line, told)
        exclusion.receipt(run, view, line, chosen, final)
        if rule.kind == "harm":
            with st.expander(t("surface"), icon=":material/grid_on:", on_change="rerun", key="surface.open") as opened:
                if opened.open:
                    surface.show(view, line)
        foretelling.show(run, view, final.entries)
        st.subheader(t("desk.title"))
        who = verdicts.desk(run, view, line, chosen, told)
        with st.container(horizontal=True, gap="large"):  # below each other where there is no room
            left, right = st.container(width=500), st.container(width=370)
        with left:
            st.subheader(t("threshold.list"))
            exclusion.preview(view, line, final)
        with right:
            st.subheader(t("threshold.export"))
            exporting.export(run, view, line, final, told, who)
