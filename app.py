"""The workbench from a checkout: `streamlit run app.py`, with `-- --models DIR` for your models."""

from interp.ui.app import main

if __name__ == "__main__":  # a process of a long job imports this file too
    main()
