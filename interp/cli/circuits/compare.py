"""`interp circuit compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.circuits.common import CircuitFile, size_of
from interp.cli.terminal import (
    SIZE,
    JsonFile,
    SeedOption,
)

if TYPE_CHECKING:
    from interp.circuits.evaluation.overlap import Overlap


def compare(
    left: CircuitFile,
    right: CircuitFile,
    random: Annotated[int, typer.Option(parser=SIZE, help="Pairs of random circuits.")] = 200,
    seed: SeedOption = 0,
    json_file: JsonFile = None,
) -> None:
    """What two circuits share, by kind of edge and node, against random ones like them."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.evaluation.overlap import compare_circuits

    both = [Circuit.load(path) for path in (left, right)]
    found = compare_circuits(*both, random=random, seed=seed)
    edges = found.rows[0]
    against = "" if edges.expected is None else f"; random circuits like them have {_random(edges)}"
    terminal.say(
        f"The circuits share {edges.shared} edges, a Jaccard index of {edges.jaccard:.3f}{against}."
    )
    sides = (("left", found.left), ("right", found.right))
    terminal.table(["side", "circuit", "size"], [[side, c.name, size_of(c)] for side, c in sides])
    rows = []
    for row in found.rows:
        sizes = map(str, (row.left, row.right, row.shared))
        share = terminal.NONE if row.expected is None else f"{row.expected.share:.3f}"
        rows.append([row.kind, *sizes, f"{row.jaccard:.3f}", _random(row), share])
    head = ["kind", "left", "right", "shared", "Jaccard", "random circuits", "as similar"]
    terminal.table(head, rows)
    terminal.write(json_file, found.to_dict())


def _random(row: Overlap) -> str:
    null = row.expected
    return (
        terminal.NONE if null is None else f"{null.mean:.3f} {terminal.spread(null.low, null.high)}"
    )
