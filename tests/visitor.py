"""A visitor without a browser, who speaks the app's messages: for thousands of page switches."""

from typing import Any, Self

import psutil
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from interp.ui.shared.prompts import AskedPrompt, keep

EARLY = ForwardMsg.FINISHED_EARLY_FOR_RERUN
PATIENCE = 300.0
"""Seconds before a visitor gives up: no measure of speed, only of something that hangs."""


def kept_link(model: str, text: str) -> str:
    """Keep a typed prompt in the cache, as a page does, and return the link that reads it."""
    asked = AskedPrompt(text)
    keep(asked)
    return f"model={model}&asked={asked.hash}"


class Visitor:
    """One visit to an app, as long as it is open.

    Attributes:
        link: the query of the address, which pages change.
        received: bytes of all messages so far.
    """

    def __init__(self, address: str, link: str = "") -> None:
        host = address.partition("//")[2]
        self.link, self.received = link, 0
        self._pages: dict[str, str] = {}
        self._socket = connect(
            f"ws://{host}/_stcore/stream",
            subprotocols=["streamlit"],  # type: ignore[list-item]
            max_size=None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def turn(self, page: str) -> list[str]:
        """Go to a page by its name in the address, and wait for it; the texts that it shows.

        Raises:
            AssertionError: the page shows an error or an exception.
        """
        asked, shown = BackMsg(), []
        asked.rerun_script.query_string = self.link
        asked.rerun_script.page_name = page
        asked.rerun_script.page_script_hash = self._pages.get(page, "")
        self._socket.send(asked.SerializeToString())
        while True:
            sent = self._socket.recv(timeout=PATIENCE, decode=False)
            self.received += len(sent)
            message: Any = ForwardMsg.FromString(sent)
            kind = message.WhichOneof("type")
            if kind == "navigation":
                for one in message.navigation.app_pages:
                    name = "" if one.is_default else one.url_pathname
                    self._pages[name] = one.page_script_hash
            elif kind == "page_info_changed":
                self.link = message.page_info_changed.query_string
            elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
                element = message.delta.new_element
                assert element.WhichOneof("type") != "exception", element.exception.message
                if element.WhichOneof("type") == "alert":
                    assert element.alert.format != element.alert.ERROR, element.alert.body
                shown.append(str(element))
            elif kind == "script_finished" and message.script_finished != EARLY:
                return shown


def private(process: psutil.Process) -> float:
    """Megabytes that only this process holds: files, such as a model's, may leave at any time."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / 1e6
