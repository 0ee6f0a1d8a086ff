"""The files that the server of `interp app` sends, as a browser asks for them."""

import asyncio
import gzip
import http.client
import re

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from interp.ui.server import AHEAD, CompressedFiles
from tests.browsing import Served


def answer(served: Served, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    host = served.address.partition("//")[2]
    asked = http.client.HTTPConnection(host)
    asked.request("GET", path, headers=headers)
    found = asked.getresponse()
    return found, found.read()


@pytest.fixture(scope="module")
def script(team: Served) -> str:
    """The largest script that the first page asks for."""
    _, page = answer(team, "/")
    paths = re.findall(r'(?:src|href)="\.?(/static/js/[^"]+)"', page.decode())
    return max(paths, key=lambda path: len(answer(team, path)[1]))


def test_a_file_is_the_same_compressed_the_first_time_and_again(team: Served, script: str) -> None:
    plain, whole = answer(team, script)
    assert plain.getheader("Content-Encoding") is None
    for _ in range(2):
        found, packed = answer(team, script, **{"Accept-Encoding": "gzip, br"})
        assert found.status == 200
        assert found.getheader("Content-Encoding") == "gzip"
        assert "immutable" in str(found.getheader("Cache-Control"))
        assert found.getheader("Content-Type") == plain.getheader("Content-Type")
        assert gzip.decompress(packed) == whole
        assert len(packed) < len(whole) / 2
    again, last = answer(team, script)
    assert again.getheader("Content-Encoding") is None
    assert last == whole


def test_a_page_names_the_scripts_that_draw_and_other_files_do_not(
    team: Served, script: str
) -> None:
    for path in ("/", "/patching"):
        named = re.findall(
            r"<\.(/[^>]+)>; rel=modulepreload", answer(team, path)[0].headers["Link"]
        )
        assert len(named) == len(AHEAD)
        for script_ahead in named:
            found, _ = answer(team, script_ahead)
            assert "javascript" in str(found.getheader("Content-Type"))
        assert any(b"heatmap" in answer(team, script_ahead)[1] for script_ahead in named)
    assert answer(team, script)[0].getheader("Link") is None


def test_a_part_of_a_file_is_sent_as_it_is(team: Served, script: str) -> None:
    part, few = answer(team, script, Range="bytes=0-99", **{"Accept-Encoding": "gzip"})
    assert part.status == 206
    assert few == answer(team, script)[1][:100]


@pytest.mark.parametrize(
    ("lasting", "status", "calls"),
    [("immutable", 200, 1), ("no-cache", 200, 3), ("no-cache", 404, 3)],
)
def test_only_files_that_never_change_are_kept(lasting: str, status: int, calls: int) -> None:
    """Streamlit answers with its first page to any name that it does not know."""
    asked: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope)
        whole = Response("word " * 1000, status, {"Cache-Control": lasting})
        await whole(scope, receive, send)

    files, sent = CompressedFiles(app), []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"accept-encoding", b"gzip")]
    scope = {"type": "http", "method": "GET", "path": "/static/js/a.js", "headers": headers}
    for _ in range(3):
        asyncio.run(files(dict(scope), receive, send))
    assert len(asked) == calls
    bodies = [m["body"] for m in sent if m["type"] == "http.response.body" and m["body"]]
    assert [gzip.decompress(body) for body in bodies] == [b"word " * 1000] * 3


def test_a_file_whose_first_browser_left_is_read_again() -> None:
    asked: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(True)
        headers = [(b"cache-control", b"immutable"), (b"content-type", b"text/javascript")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = {"type": "http.response.body", "body": b"word " * 1000}
        await send(body | {"more_body": True})
        if len(asked) > 1:  # the first browser leaves
            await send(body | {"more_body": False})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    files, headers = CompressedFiles(app), [(b"accept-encoding", b"gzip")]
    scope = {"type": "http", "method": "GET", "path": "/static/js/a.js", "headers": headers}
    for _ in range(3):
        sent: list[Message] = []
        asyncio.run(files(dict(scope), receive, send))
    assert len(asked) == 2
    assert gzip.decompress(b"".join(m["body"] for m in sent[1:])) == b"word " * 2000
