"""The workbench's pages. Run by `interp app`, or by `streamlit run app.py` in a checkout."""

from __future__ import annotations

import os
import sys
from typing import Any

if "--hub" not in sys.argv:  # before anything that reads it is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import streamlit as st

from interp.core.errors import InterpError
from interp.ui import VIEWS, tours
from interp.ui.shared import offered, theme
from interp.ui.shared.state import agree, ignored, write_link
from interp.ui.shared.widgets import plain, show_error

ICON = VIEWS / "icon.svg"  # a named icon would be fetched from outside
SIDEBAR = 230
"""Pixels: beside it the whole menu fits into a window of 1280."""
PAGES = {
    "": (
        ("look", "Look", "visibility"),
        ("heads", "Heads", "apps"),
        ("neurons", "Neurons", "scatter_plot"),
        ("patching", "Patching", "grid_on"),
        ("directions", "Directions", "explore"),
        ("interventions", "Interventions", "content_cut"),
        ("circuits", "Circuits", "account_tree"),
        ("weights", "Weights", "balance"),
        ("runs", "Runs", "history"),
        ("setup", "Setup", "tune"),
    ),
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
    "reuse": (
        ("study", "Study", "recycling"),
        ("circuits", "Circuits", "account_tree"),
    ),
}
"""Folder (a study's name, or none) -> its pages: file, title and icon."""


def main() -> None:
    """Show the page that the address names, and what concerns every page: link and errors."""
    st.set_page_config(
        page_title="interp workbench",
        page_icon=ICON,
        layout="wide",
        initial_sidebar_state=SIDEBAR,
    )
    st.html(
        "<style>.stMainBlockContainer {padding: 3.75rem 2.5rem 3rem}"
        "[data-testid=stTopNavLink], [data-testid=stTopNavSection] {padding-inline: 4px; gap: 4px}"
        f".st-key-{theme.KEY} {{position: absolute}}</style>"
    )
    shown: dict[str, list[Any]] = {"": [], "Studies": []}
    for folder, pages in PAGES.items():
        for name, title, icon in pages:
            page = st.Page(
                VIEWS / folder / f"{name}.py",
                title=f"{folder.capitalize()}: {title}" if folder else title,
                icon=f":material/{icon}:",
                url_path=f"{folder}_{name}" if folder else None,
                default=name == "look",
            )
            shown["Studies" if folder else ""].append(page)
    shown[""].append(st.Page(VIEWS / "glossary.py", title="Glossary", visibility="hidden"))
    page = st.navigation(shown, position="top")
    above = st.container()
    theme.follow()
    write_link()
    try:
        page.run()
    except InterpError as error:
        show_error(error)
    if not page.url_path:
        tours.offer()
    with above:
        tours.panel()
        _notices()


def _notices() -> None:
    """What is said of the link that opened the page; it stays until it is dismissed."""
    name = offered.asked()
    if name is not None:
        with st.container(border=True):
            st.markdown(
                f"**This link names the model {plain(name)}**, which is not among those offered "
                "here. Load it only if you trust where it comes from."
            )
            with st.container(horizontal=True):
                st.button("Load it", icon=":material/memory:", on_click=agree)
                st.button("Ignore it", on_click=offered.ask, args=(None,))
    if words := list(dict.fromkeys(ignored())):
        lines = "".join(f"  \n{plain(word)}" for word in words)
        st.warning(f"**Ignored.**{lines}", icon=":material/link_off:")
        st.button("Dismiss", on_click=ignored().clear)


if __name__ == "__main__":
    main()
