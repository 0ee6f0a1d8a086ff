"""The server of `interp app`: Streamlit's with compressed files, without its page of metrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
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


AHEAD = ("PlotlyChart", "DataFrame", "arrowFormatUtils", "StreamlitSyntaxHighlighter")
"""Scripts that draw figures, tables and code, the largest ones."""


class ScriptsAhead:
    """Tells a browser with the page's frame which scripts will draw what it shows.

    A browser asks for them only when the first figure or table has arrived, and then takes two
    seconds to fetch and read them; told before, it does so while the model is loaded.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        scripts = files("streamlit").joinpath("static", "static", "js").iterdir()
        names = sorted(
            path.name
            for path in scripts
            if path.name.endswith(".js") and path.name.partition(".")[0] in AHEAD
        )
        self._link = ", ".join(f"<./static/js/{name}>; rel=modulepreload" for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to what is a page, and pass on the rest as it is."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and self._link:
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("link", self._link)
            await send(message)

        await self.app(scope, receive, noted if scope["type"] == "http" else send)


class CompressedFiles:
    """Sends the program's files compressed to browsers that ask for it.

    Each is compressed once in a server's life; a browser keeps them. Streamlit sends them as they
    are, because it would compress them for every browser again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._compressed = GZipMiddleware(app, compresslevel=6)
        self._kept: dict[str, list[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for a file; pass on every other request."""
        if not _takes_compressed(scope):
            await self.app(scope, receive, send)
            return
        kept = self._kept.get(scope["path"], [])
        for message in kept:
            await send(message)
        if kept:
            return

        async def note(message: Message) -> None:
            kept.append(message)
            await send(message)

        await self._compressed(scope, receive, note)
        headers = Headers(raw=kept[0]["headers"])
        ended = not kept[-1].get("more_body", False)  # or else the browser left meanwhile
        whole = ended and kept[0]["status"] == 200 and "content-encoding" in headers
        if whole and "immutable" in headers.get("cache-control", ""):
            self._kept[scope["path"]] = kept


def _takes_compressed(scope: Scope) -> bool:
    """Whether a request is for a whole file of the program, and its browser unpacks it."""
    if scope["type"] != "http" or scope["method"] != "GET" or "/static/" not in scope["path"]:
        return False
    headers = Headers(scope=scope)
    return "gzip" in headers.get("accept-encoding", "") and "range" not in headers


def serve(options: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Serve the workbench until it is stopped.

    Args:
        options: of the workbench, as `interp.ui.shared.offered.options` reads them.
        settings: of Streamlit, by dotted name; those of `.streamlit/config.toml` otherwise.
    """
    sys.argv = [str(SCRIPT), *options]
    early.begin()
    with suppress(KeyboardInterrupt):  # how it is stopped
        between = [Middleware(each) for each in (WithoutMetrics, ScriptsAhead, CompressedFiles)]
        App(SCRIPT, middleware=between).run(config=settings)
