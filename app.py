"""The dashboard's server: `streamlit run app.py`. Every visit, whatever its address, runs the one script `server.SCRIPT`."""

import streamlit as st

from pages.shared import server

server.require_safety()
app = st.App(server.SCRIPT, routes=server.ROUTES, middleware=server.MIDDLEWARE, on_script_error=server.show_error)
