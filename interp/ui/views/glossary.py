"""Glossary: the words that the pages use."""

from __future__ import annotations

import streamlit as st

from interp.ui.shared import glossary


def _show() -> None:
    st.title("Glossary", anchor=False)
    for title, text in glossary.sections().items():
        st.header(title, anchor=glossary.anchor(title))
        st.markdown(text)


if __name__ == "__main__":
    _show()
