"""`interp circuit compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from interp.cli import terminal
from interp.cli.circuits.common import CircuitFile
from interp.cli.terminal import (
    SIZE,
    JsonFile,
    Seed,
)


def compare(
    left: CircuitFile,
    right: CircuitFile,
    random: Annotated[int, typer.Option(parser=SIZE, help="Pairs of random circuits.")] = 200,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """What two circuits share, by kind of edge and node, against random ones like them."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.evaluation.overlap import compare_circuits

    both = [Circuit.load(path) for path in (left, right)]
    found = compare_circuits(*both, random=random, seed=seed)
    for side, one in (("left", found.left), ("right", found.right)):
        terminal.say(f"{side}: {one!r}")
    rows = []
    for row in found.rows:
        null = row.expected
        chance = ("", "")
        if null is not None:
            chance = f"{null.mean:.3f} [{null.low:.3f}, {null.high:.3f}]", f"{null.share:.3f}"
        sizes = map(str, (row.left, row.right, row.shared))
        rows.append([row.kind, *sizes, f"{row.jaccard:.3f}", *chance])
    head = ["", "left", "right", "shared", "Jaccard", "random circuits like them", "as strong"]
    terminal.table(head, rows)
    terminal.write(json_file, found.to_dict())
