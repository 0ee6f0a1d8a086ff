"""Circuits saved by name in the cache, to be compared later."""

from __future__ import annotations

import re
from pathlib import Path

from interp.circuits.circuit import Circuit
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.engine.edges.graph import Graph


def saved_dir() -> Path:
    """The directory of saved circuits."""
    return cache_dir() / "circuits" / "kept"


def save_circuit(circuit: Circuit) -> str:
    """Save a circuit under its name and the first eight digits of its hash; returns that name."""
    words = re.sub(r"[^\w.]+", "-", circuit.name).strip("-")
    name = f"{words}-{circuit.hash[:8]}"
    circuit.save(saved_dir() / name)
    return name


def saved_circuits(graph: Graph | None = None) -> dict[str, Circuit]:
    """The saved circuits by name, newest first; with `graph`, only those of this graph.

    Damaged files are skipped.
    """
    found = {}
    for path in sorted(saved_dir().glob("[!.]*.safetensors"), key=lambda p: -p.stat().st_mtime_ns):
        try:
            circuit = Circuit.load(path)
        except InterpError:
            continue
        if graph is None or circuit.graph == graph:
            found[path.stem] = circuit
    return found


def delete_circuit(name: str) -> None:
    """Delete a saved circuit, if it exists."""
    (saved_dir() / f"{Path(name).name}.safetensors").unlink(missing_ok=True)
