"""The server of `interp app`: Streamlit's, without the page that tells how the server is used."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit import App

from interp.ui import VIEWS
from interp.ui.shared import early

SCRIPT = VIEWS.parent / "app.py"


class WithoutMetrics:
    """Answers 404 where Streamlit tells how many visitors there are and what they hold."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on every other request."""
        closed = scope["type"] == "http" and scope["path"].rstrip("/").endswith("/_stcore/metrics")
        await (Response(status_code=404) if closed else self.app)(scope, receive, send)


def serve(options: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Serve the workbench until it is stopped.

    Args:
        options: of the workbench, as `interp.ui.shared.offered.options` reads them.
        settings: of Streamlit, by dotted name; those of `.streamlit/config.toml` otherwise.
    """
    sys.argv = [str(SCRIPT), *options]
    early.begin()
    with suppress(KeyboardInterrupt):  # how it is stopped
        App(SCRIPT, middleware=[Middleware(WithoutMetrics)]).run(config=settings)
