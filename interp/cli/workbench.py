"""`interp app`: the workbench in the browser."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from interp.core.errors import InterpError

LOCAL = ("localhost", "127.0.0.1")


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
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name under which a reverse proxy serves it; repeat for more."
        ),
    ] = None,
    base_path: Annotated[
        str, typer.Option(metavar="PATH", help="The path under which a reverse proxy serves it.")
    ] = "",
) -> None:
    """Open the workbench: any prompt, patching, circuits and studies on pages in the browser.

    It answers this machine only. To share it, put a reverse proxy that asks who it is before it.
    """
    if find_spec("streamlit") is None:
        raise InterpError("opening the app", "streamlit is missing", 'pip install "interp[app]"')
    if models is not None and not models.is_dir():
        raise InterpError(f"--models {models}", "no such folder", "name a folder of model folders")
    from interp.ui.server import serve

    settings = {
        "server.baseUrlPath": base_path,
        "server.allowedHosts": [*LOCAL, *(host or ())],
        **({} if port is None else {"server.port": port}),
    }
    offered = [] if models is None else ["--models", str(models)]
    serve([*offered, *["--hub"] * hub], settings)
