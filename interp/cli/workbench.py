"""`interp app`: the workbench in the browser."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from interp.core.errors import InterpError

SCRIPT = Path(__file__).parents[1] / "ui" / "app.py"


def workbench(
    models: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also offer the models in the folders of DIR."),
    ] = None,
    hub: Annotated[
        bool, typer.Option("--hub", help="Let the app download models from the Hugging Face hub.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free from 8501.")
    ] = None,
) -> None:
    """Open the workbench: patching, circuits and studies on pages in the browser."""
    if find_spec("streamlit") is None:
        raise InterpError("opening the app", "streamlit is missing", 'pip install "interp[app]"')
    if models is not None and not models.is_dir():
        raise InterpError(f"--models {models}", "no such folder", "name a folder of model folders")
    served = [] if port is None else ["--server.port", str(port)]
    offered = [] if models is None else ["--models", str(models)]
    sys.argv = ["streamlit", "run", str(SCRIPT), *served, "--", *offered, *["--hub"] * hub]
    runpy.run_module("streamlit", run_name="__main__")
