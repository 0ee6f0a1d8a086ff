"""What a page says about the link it was opened by: values ignored, a model to ask about."""

from __future__ import annotations

import streamlit as st

from interp.ui.shared import offered
from interp.ui.shared.state import agree, current, ignored
from interp.ui.shared.widgets import plain


def notices() -> None:
    """The words, above the page; they stay until they are dismissed."""
    current()
    name = offered.asked()
    if name is not None:
        with st.container(border=True):
            st.markdown(
                f"**This link names the model {plain(name)}**, which is not among those offered "
                "here. Load it only if you trust where it comes from."
            )
            with st.container(horizontal=True):
                st.button("Load it", icon=":material/memory:", on_click=agree)
                st.button("Ignore it", on_click=offered.answered)
    if words := list(dict.fromkeys(ignored())):
        lines = "".join(f"  \n{plain(word)}" for word in words)
        st.warning(f"**Ignored.**{lines}", icon=":material/link_off:")
        st.button("Dismiss", on_click=ignored().clear)
