"""The Streamlit workbench. It shows what `interp`'s functions return and computes nothing."""

from pathlib import Path

VIEWS = Path(__file__).parent / "views"
"""The pages, one file each."""
