"""A run's report, written when somebody asks for it."""

from functools import partial
from typing import Final

import streamlit as st

from pages.shared import session
from pages.shared.i18n import t
from tracin_core.records.report import file_name, report_html, report_markdown
from tracin_core.records.runs import Run

FORMS: Final = {".html": (report_html, "text/html"), ".md": (report_markdown, "text/markdown")}


def download(run: Run, language: str) -> None:
    """A button for each form of the report; it is written, in this language, once one is pressed."""
    place = session.workspace()
    with st.container(horizontal=True):
        for ending, (write, mime) in FORMS.items():
            st.download_button(
                t(f"report{ending}"),
                partial(write, run, language, place=place),
                file_name(run, ending),
                mime,
                key=f"report{ending}",
                type="primary" if ending == ".html" else "secondary",
                icon=":material/download:",
                on_click="ignore",
            )
