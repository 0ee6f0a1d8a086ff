"""The Streamlit workbench. It shows what `interp`'s functions return and computes nothing."""
