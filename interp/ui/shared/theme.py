"""Draws the page again when the browser's theme changes: figures are drawn for one theme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.components import v2

KEY = "theme-watched"
JS = """
export default function ({parentElement, setTriggerValue}) {
  const here = parentElement.querySelector("div");
  const read = () => getComputedStyle(here).getPropertyValue("--st-background-color").trim();
  let shown = read();
  const timer = setInterval(() => {
    const now = read();
    if (now && now !== shown) {
      shown = now;
      setTriggerValue("changed", now);
    }
  }, 300);
  return () => clearInterval(timer);
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., Any]:
    return v2.component("interp.theme", html="<div></div>", js=JS)


def follow() -> None:
    """Watch the theme; a change runs the page again, for which `st.context.theme` is the new one.

    Without it a change in the menu, or in the browser, leaves every figure as it was drawn.
    """
    with st.container(key=KEY):
        _component()(key=f"{KEY}-now", on_changed_change=lambda: None)
