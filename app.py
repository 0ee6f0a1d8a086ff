"""The workbench: `streamlit run app.py`."""

import streamlit as st

st.set_page_config(page_title="interp workbench", page_icon=":material/hub:", layout="wide")
st.html("<style>.stMainBlockContainer {padding: 3.75rem 2.5rem 3rem}</style>")
st.navigation(
    [
        st.Page("interp/ui/views/setup.py", title="Setup", icon=":material/tune:", default=True),
        st.Page("interp/ui/views/patching.py", title="Patching", icon=":material/grid_on:"),
    ],
    position="top",
).run()
