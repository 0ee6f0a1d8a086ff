"""How a page begins: its title, and three lines about it."""

from __future__ import annotations

import streamlit as st

from interp.ui.shared.glossary import linked


def intro(title: str, *, does: str, when: str, lacks: str) -> None:
    """A page's title and three lines: what it does, when to use it, what it does not show.

    A word of the glossary is a link where it is first used.
    """
    st.title(title, anchor=False)
    does, when, lacks = linked("\0".join((does, when, lacks))).split("\0")
    st.markdown(
        f"**What it does.** {does}  \n**When to use it.** {when}  \n"
        f"**What it does not show.** {lacks}"
    )
