"""`interp app` opens the workbench from any folder once the wheel is installed."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from interp.cli import workbench
from interp.core.errors import InterpError
from tests import ROOT
from tests.cli.test_main import run

SOURCES = ("interp", "benchmarks", "experiments", "tests", "training")
OUTSIDE = ("benchmarks", "experiments", "tests", "training", "cache", "docs", "app.py")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")
PAGE = """
import json
import interp
from streamlit.testing.v1 import AppTest

at = AppTest.from_file(interp.__path__[0] + "/ui/app.py", default_timeout=120).run()
at.switch_page("views/setup.py").run()
next(button for button in at.button if button.label == "Try a toy").click().run()
print(json.dumps([interp.__file__, [*map(str, at.exception)], [h.value for h in at.header]]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that nothing an earlier build left behind goes in."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE", "app.py"):
        shutil.copy(ROOT / name, source)
    flags = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, source], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of a fresh environment: interp from the wheel, the rest from this one.

    A .pth file adds this environment's packages. Their own .pth files are not read, so a checkout
    installed here as editable stays invisible.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    programs = Path(venv.EnvBuilder().ensure_directories(folder).bin_path)
    python = programs / "python"
    flags = ("--no-deps", "--no-index", "--quiet")
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    subprocess.run([*pip, *flags, wheel], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    ours = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (Path(site.stdout.strip()) / "beside.pth").write_text("\n".join(ours))
    return programs


@pytest.fixture
def apart(tmp_path) -> dict:
    """How a program is started in an empty folder that knows nothing of the checkout."""
    own = {"INTERP_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    known = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    (tmp_path / "empty").mkdir()
    return {"cwd": tmp_path / "empty", "env": known | own, "text": True}


def test_the_wheel_holds_every_data_file_and_nothing_but_the_package(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = (
        path
        for path in (ROOT / "interp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert {str(path.relative_to(ROOT)) for path in ours} <= held
    assert {
        "interp/py.typed",
        "interp/__init__.pyi",
        "interp/data/families.json",
        "interp/data/taboo.json",
        "interp/models/programs/reverse.safetensors",
        "interp/ui/.streamlit/config.toml",
        "interp/ui/views/icon.svg",
        "interp/weights/countdown-tiny/model.safetensors",
        "interp/weights/countdown-untold/model.safetensors",
        "interp/weights/refusal-tiny/chat_template.jinja",
    } <= held
    tops = {name.split("/")[0] for name in held}
    assert not tops & set(OUTSIDE)
    assert {top for top in tops if not top.endswith(".dist-info")} == {"interp"}


@pytest.mark.long
def test_the_installed_app_opens_in_an_empty_folder(installed, apart, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as out:
        app = subprocess.Popen(
            [installed / "interp", "app", "--port", str(port)], stdout=out, stderr=out, **apart
        )
    try:
        read = _answer(f"http://127.0.0.1:{port}", app, log)
        assert read("/_stcore/health") == "ok"
        assert "<title>" in read("/")
    finally:
        app.send_signal(signal.SIGINT)
        code = app.wait(30)
    assert code == 0
    assert "Traceback" not in log.read_text()
    assert not list(apart["cwd"].iterdir())


def _answer(address, app, log):
    """What the server answers to a path, from the moment it is up."""

    def read(path: str) -> str:
        with urllib.request.urlopen(address + path) as answer:
            return answer.read().decode()

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert app.poll() is None, log.read_text()
        try:
            read("/_stcore/health")
        except OSError:
            time.sleep(0.1)
        else:
            return read
    raise AssertionError(f"the app did not start: {log.read_text()}")


@pytest.mark.long
def test_the_installed_page_shows(installed, apart):
    done = subprocess.run(
        [installed / "python", "-c", PAGE], capture_output=True, check=True, **apart
    )
    file, exceptions, headers = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(installed.parent)
    assert not exceptions
    assert [h.replace("\\", "") for h in headers] == ["toy-induction on toy-induction"]


def test_without_streamlit_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(workbench, "find_spec", lambda name: None)
    with pytest.raises(InterpError, match=r'pip install "interp\[app\]"'):
        run("app")


def test_a_folder_of_models_that_is_missing_is_refused(tmp_path):
    with pytest.raises(InterpError, match="no such folder"):
        run("app", "--models", tmp_path / "nowhere")
    assert "Invalid value" in run("app", "--port", 0)


def test_the_pages_see_the_options(monkeypatch, tmp_path):
    """What follows `--` reaches `options()` as the workbench's own."""
    pytest.importorskip("streamlit")
    from interp.ui.shared import offered

    ran: list = []
    monkeypatch.setattr("streamlit.App.run", lambda app, *, config: ran.append(config))
    monkeypatch.setattr(sys, "argv", [])
    run("app", "--models", tmp_path, "--hub", "--port", 8600, "--host", "lab.org")
    assert ran == [
        {
            "server.baseUrlPath": "",
            "server.allowedHosts": ["localhost", "127.0.0.1", "lab.org"],
            "server.port": 8600,
        }
    ]
    assert vars(offered.options()) == {"models": tmp_path, "hub": True}


@pytest.mark.long
def test_behind_a_proxy_it_answers_at_its_path_to_its_name_and_hides_metrics(tmp_path):
    """A server with a base path and a host name: which requests it answers, by plain HTTP."""
    pytest.importorskip("streamlit")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    command = [sys.executable, "-m", "interp", "app", "--port", str(port)]
    command += ["--host", "lab.example.org", "--base-path", "interp"]
    with log.open("w") as out:
        app = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path)
    try:
        base = f"http://127.0.0.1:{port}/interp"
        assert _answer(base, app, log)("/_stcore/health") == "ok"

        def code(path: str, **headers: str) -> int:
            asked = http.client.HTTPConnection("127.0.0.1", port)
            asked.request("GET", f"/interp{path}", headers=headers)
            return asked.getresponse().status

        for path in ("/_stcore/metrics", "/_stcore/metrics/", "/_stcore/metrics?families=x"):
            assert code(path) == 404
        web = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        web |= {"Sec-WebSocket-Key": "c29tZSByYW5kb20ga2V5IQ=="}
        assert code("/_stcore/stream", Host="lab.example.org", **web) == 101
        assert code("/_stcore/stream", Host="evil.example.org", **web) == 403
    finally:
        app.send_signal(signal.SIGINT)
        app.wait(30)
