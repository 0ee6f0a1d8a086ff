"""How a page begins: its title, and three lines about it."""

from __future__ import annotations

import streamlit as st


def intro(title: str, *, does: str, when: str, lacks: str) -> None:
    """A page's title and three lines: what it does, when to use it, what it does not show."""
    st.title(title, anchor=False)
    st.markdown(
        f"**What it does.** {does}  \n**When to use it.** {when}  \n"
        f"**What it does not show.** {lacks}"
    )
