"""The workbench: `streamlit run app.py`."""

import streamlit as st

VIEWS = "interp/ui/views"

st.set_page_config(page_title="interp workbench", page_icon=":material/hub:", layout="wide")
st.html("<style>.stMainBlockContainer {padding: 3.75rem 2.5rem 3rem}</style>")
st.navigation(
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
).run()
