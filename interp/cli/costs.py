"""`interp fit`: what a model needs, before it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import NONE, about, count


def fit(
    model: Annotated[
        str,
        typer.Argument(help="A model's name, a folder, a GGUF file, a cached id, or config.json."),
    ],
    n: Annotated[int, count("Prompt pairs of the sweep.", "--n")] = 32,
    tokens: Annotated[int, count("Tokens of each prompt.")] = 32,
    share: Annotated[float, about("Share of a card's peak rate that is assumed.")] = 0.3,
    revision: Annotated[str | None, about("Branch, tag or commit of a Hugging Face id.")] = None,
    json_file: terminal.JsonFile = None,
) -> None:
    """Say what a model needs and where it fits, from its configuration alone."""
    from interp.models.needs import fit as needed

    found = needed(model, n=n, tokens=tokens, share=share, revision=revision)
    terminal.say(repr(found))
    if found.sites:
        absent = [site for site, why in found.sites.items() if why is not None]
        offered = f"{len(found.sites) - len(absent)} of {len(found.sites)} sites"
        without = f", all but {', '.join(absent)}" if absent else ""
        terminal.say(f"A tiny {found.architecture} that was tried offers {offered}{without}.")
    for note in found.notes:
        terminal.say(f"Note: {note}.")
    terminal.table(
        ["format", "weights", f"all sites of {n} prompts", f"{n} stored pairs", "least sweep"],
        [
            [
                m.dtype,
                *(NONE if x is None else size(x) for x in (m.weights, m.runs, m.pairs, m.sweep)),
            ]
            for m in found.memory
        ],
    )
    terminal.table(
        [
            "where",
            "memory",
            *(f"needed, {dtype}" for dtype in found.places[0].cards),
            "TFLOP/s",
            "sweep in",
            "time",
        ],
        [
            [
                place.name,
                size(place.memory),
                *map(str, place.cards.values()),
                f"{place.rate / 1e12:.3g}",
                place.dtype,
                place.words,
            ]
            for place in found.places
        ],
    )
    terminal.say(
        f"The sweep patches {found.cells:,} heads in {n} pairs of {tokens} tokens: "
        f"{found.flops / 1e12:.3g} TFLOP at least. Times are calculated, not measured: here from "
        f"the measured rate of matrix products, on cards from {share:.0%} of the peak in the data "
        "sheet. Needed: how many hold the weights and the smallest sweep; a model over several "
        "GPUs runs through hooks."
    )
    terminal.write(json_file, asdict(found))


def size(bytes_: float) -> str:
    """A number of bytes in GB, 1e9 bytes."""
    return f"{bytes_ / 1e9:.3g} GB"
