"""Processes of other packages, in environments that are built once and kept in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interp.core.errors import InterpError
from interp.core.files import cache_dir

PINS = {"nnsight": "nnsight==0.8.1", "pyvene": "pyvene==0.1.8"}
"""Packages that do not go with ours into one environment, at the versions that were measured."""


def python_of(package: str) -> Path:
    """A Python that has a package: this one, or one of an environment that is built here.

    Raises:
        InterpError: pip cannot install the package; the message gives its last words.
    """
    if package not in PINS:
        return Path(sys.executable)
    folder = cache_dir() / "benchmarks" / PINS[package]
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        version = torch.__version__.partition("+")[0]
        asked, do = f"an environment for {package}", "repair the connection, or leave the peer out"
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], asked, do)
        wanted = [f"torch=={version}", PINS[package], "safetensors"]
        _run([str(python), "-m", "pip", "install", "--quiet", *wanted], asked, do)
        ready.touch()
    return python


def run_process(python: Path, module: str, peer: str, folder: Path, *paths: Path) -> None:
    """Run `python -m module peer folder` on one thread; it finds `benchmarks` and further paths.

    Raises:
        InterpError: the process failed.
    """
    root = Path(__file__).parent.parent
    path = os.pathsep.join(str(p.resolve()) for p in (root, *paths))
    told = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-m", module, peer, str(folder)]
    _run(command, f"running {peer} in {python}", "repair its environment", cwd=folder, env=told)


def _run(command: Sequence[str], asked: str, do: str, **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise InterpError(asked, done.stderr[-2000:], do)
