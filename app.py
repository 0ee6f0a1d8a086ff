"""The workbench from a checkout: `streamlit run app.py`, with `-- --models DIR` for your models."""

from interp.ui.app import main

main()
