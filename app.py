"""The workbench: `streamlit run app.py`, with `-- --models DIR` to offer models of one's own."""

import os
import sys
from pathlib import Path

if "--hub" not in sys.argv:  # before anything that reads it is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import streamlit as st

from interp.ui.links import notices

VIEWS = "interp/ui/views"
ICON = Path(__file__).parent / VIEWS / "icon.svg"  # a named icon would be fetched from outside

st.set_page_config(page_title="interp workbench", page_icon=ICON, layout="wide")
st.html("<style>.stMainBlockContainer {padding: 3.75rem 2.5rem 3rem}</style>")
page = st.navigation(
    {
        "": [
            st.Page(f"{VIEWS}/setup.py", title="Setup", icon=":material/tune:", default=True),
            st.Page(f"{VIEWS}/patching.py", title="Patching", icon=":material/grid_on:"),
            st.Page(f"{VIEWS}/circuits.py", title="Circuits", icon=":material/account_tree:"),
        ],
        "Verification": [
            st.Page(f"{VIEWS}/verification_{name}.py", title=title, icon=f":material/{icon}:")
            for name, title, icon in (
                ("study", "Study", "science"),
                ("probes", "Probes and lens", "show_chart"),
                ("glu", "GLU vectors", "scatter_plot"),
                ("heads", "Heads", "apps"),
                ("interventions", "Interventions", "content_cut"),
            )
        ],
        "Refusal": [
            st.Page(f"{VIEWS}/refusal_{name}.py", title=title, icon=f":material/{icon}:")
            for name, title, icon in (
                ("study", "Study and behaviour", "front_hand"),
                ("directions", "Directions", "explore"),
                ("trajectories", "Trajectories", "timeline"),
                ("heads", "Heads", "apps"),
                ("interventions", "Interventions", "tune"),
            )
        ],
    },
    position="top",
)
above = st.container()
page.run()
with above:
    notices()
