"""`interp circuit compare` and `interp circuit export`: circuits in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.circuits import common
from interp.cli.terminal import about, whole
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.circuits.evaluation.overlap import Overlap


def compare(
    left: common.CircuitFile,
    right: common.CircuitFile,
    random: Annotated[int, whole("Pairs of random circuits.")] = 200,
    seed: terminal.SeedOption = 0,
    json_file: terminal.JsonFile = None,
) -> None:
    """What two circuits share, by kind of edge and node, against random ones like them."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.evaluation.overlap import compare_circuits

    both = [Circuit.load(path) for path in (left, right)]
    found = compare_circuits(*both, random=random, seed=seed)
    edges = found.rows[0]
    against = "" if edges.expected is None else f"; random circuits like them have {_random(edges)}"
    terminal.say(
        f"The circuits share {edges.shared} edges, a Jaccard index of "
        f"{edges.jaccard:z.3f}{against}."
    )
    sides = (("left", found.left), ("right", found.right))
    terminal.table(
        ["side", "circuit", "size"], [[side, c.name, common.size_of(c)] for side, c in sides]
    )
    rows = []
    for row in found.rows:
        sizes = map(str, (row.left, row.right, row.shared))
        share = terminal.NONE if row.expected is None else f"{row.expected.share:z.3f}"
        rows.append([row.kind, *sizes, f"{row.jaccard:z.3f}", _random(row), share])
    head = ["kind", "left", "right", "shared", "Jaccard", "random circuits", "as similar"]
    terminal.table(head, rows)
    terminal.write(json_file, found.to_dict())


def _random(row: Overlap) -> str:
    null = row.expected
    return (
        terminal.NONE
        if null is None
        else f"{null.mean:z.3f} {terminal.spread(null.low, null.high)}"
    )


def export(
    source: Annotated[Path, typer.Argument(help="A circuit, or a MIB file (.json or .pt).")],
    target: Annotated[
        Path,
        typer.Argument(
            callback=lambda path: terminal.tried(path),
            help="The MIB file to write; a circuit if the source is MIB. Its folder must exist.",
        ),
    ],
    model: Annotated[
        str | None, about("Model of the graph; by default the one it was found in, or the file's.")
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
        terminal.say(f"{common.size_of(read)} written to {read.save(target)}")
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
    terminal.say(f"{common.size_of(read)} written to {save(read, target, d_model=loaded.d_model)}")
