"""Circuits put aside to be compared: files in the cache, by name."""

from __future__ import annotations

import re
from pathlib import Path

from interp.circuits.circuit import Circuit
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.engine.edges.graph import Graph


def shelf() -> Path:
    """The directory of kept circuits."""
    return cache_dir() / "circuits" / "kept"


def keep_circuit(circuit: Circuit) -> str:
    """Keep a circuit under its name and a part of its hash; returns what it is called."""
    words = re.sub(r"[^\w.]+", "-", circuit.name).strip("-")
    called = f"{words}-{circuit.hash[:8]}"
    circuit.save(shelf() / called)
    return called


def kept_circuits(graph: Graph | None = None) -> dict[str, Circuit]:
    """The kept circuits by what they are called, of one graph if it is given, the newest first.

    Damaged files are left out.
    """
    found = {}
    for path in sorted(shelf().glob("[!.]*.safetensors"), key=lambda p: -p.stat().st_mtime_ns):
        try:
            circuit = Circuit.load(path)
        except InterpError:
            continue
        if graph is None or circuit.graph == graph:
            found[path.stem] = circuit
    return found


def drop_circuit(called: str) -> None:
    """Remove a kept circuit; nothing happens if there is none."""
    (shelf() / f"{Path(called).name}.safetensors").unlink(missing_ok=True)
