"""`interp circuit export`: circuits to and from the files of MIB."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli import terminal
from interp.cli.circuits.common import size_of
from interp.core.errors import InterpError


def export(
    source: Annotated[Path, typer.Argument(help="A circuit, or a MIB file (.json or .pt).")],
    target: Annotated[
        Path,
        typer.Argument(
            callback=terminal.tried,
            help="A MIB file, or for a MIB source a circuit, in a folder that exists.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Whose graph it is; by default the one it was found in, or the file's."),
    ] = None,
) -> None:
    """Write a circuit as MIB JSON or PT, or read one of these back."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.files import mib
    from interp.circuits.model_graph import graph_of

    stem = Path(str(source).removesuffix(".safetensors").removesuffix(".json"))
    ours = stem.with_name(f"{stem.name}.safetensors").exists()
    kind = (target if ours else source).suffix
    if kind not in (".json", ".pt"):
        raise InterpError(
            f"exporting {source} to {target}",
            f"{'the target' if ours else 'the source'} ends in {kind or 'nothing'}",
            "a MIB file ends in .json or .pt, a circuit in .safetensors",
        )
    if not ours:
        graph = None if model is None else graph_of(terminal.load(model))
        read = (mib.from_mib_json if kind == ".json" else mib.from_mib_pt)(source, graph)
        read = read if graph is None else read.native()
        terminal.say(f"{size_of(read)} written to {read.save(target)}")
        return
    read = Circuit.load(source)
    name = model or (read.provenance.model if read.provenance else None)
    if name is None:
        raise InterpError(f"exporting {source}", "it names no model", "give --model")
    loaded = terminal.load(name)
    theirs = read.graph
    if graph_of(loaded, expand_kv=theirs.expand_kv, neurons=theirs.neurons) != theirs:
        raise InterpError(
            f"exporting {source} for {name}", f"its graph is {read.graph}", "give its own model"
        )
    save = mib.to_mib_json if kind == ".json" else mib.to_mib_pt
    terminal.say(f"{size_of(read)} written to {save(read, target, d_model=loaded.d_model)}")
