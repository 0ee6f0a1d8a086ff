"""The workbench's pages. Run by `interp app`, or by `streamlit run app.py` in a checkout."""

from __future__ import annotations

import os
import sys

if "--hub" not in sys.argv:  # before anything that reads it is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import streamlit as st

from interp.ui import VIEWS
from interp.ui.shared.links import notices

ICON = VIEWS / "icon.svg"  # a named icon would be fetched from outside
STUDIES = {
    "verification": (
        ("study", "Study", "science"),
        ("probes", "Probes and lens", "show_chart"),
        ("glu", "GLU vectors", "scatter_plot"),
        ("heads", "Heads", "apps"),
        ("interventions", "Interventions", "content_cut"),
    ),
    "refusal": (
        ("study", "Study and behaviour", "front_hand"),
        ("directions", "Directions", "explore"),
        ("trajectories", "Trajectories", "timeline"),
        ("heads", "Heads", "apps"),
        ("interventions", "Interventions", "tune"),
    ),
}
"""Study -> its pages: file, title and icon."""


def main() -> None:
    """Show the page that the address names, under the notices that concern every page."""
    st.set_page_config(page_title="interp workbench", page_icon=ICON, layout="wide")
    st.html("<style>.stMainBlockContainer {padding: 3.75rem 2.5rem 3rem}</style>")
    page = st.navigation(
        {
            "": [
                st.Page(VIEWS / "setup.py", title="Setup", icon=":material/tune:", default=True),
                st.Page(VIEWS / "patching.py", title="Patching", icon=":material/grid_on:"),
                st.Page(VIEWS / "circuits.py", title="Circuits", icon=":material/account_tree:"),
            ],
            **{
                study.capitalize(): [
                    st.Page(
                        VIEWS / study / f"{name}.py",
                        title=title,
                        icon=f":material/{icon}:",
                        url_path=f"{study}_{name}",
                    )
                    for name, title, icon in pages
                ]
                for study, pages in STUDIES.items()
            },
        },
        position="top",
    )
    above = st.container()
    page.run()
    with above:
        notices()


if __name__ == "__main__":
    main()
