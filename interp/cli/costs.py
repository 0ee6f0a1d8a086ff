"""`interp fit` and `interp cost`: what a model and a study need, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.terminal import NONE, about, count
from interp.core import schema
from interp.core.errors import InterpError, unknown


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
    from interp.core.components import EXPERT_SITES
    from interp.models.needs import fit as needed

    found = needed(model, n=n, tokens=tokens, share=share, revision=revision)
    terminal.say(repr(found))
    if found.sites:
        dense = found.sites["router"] is not None
        sites = {x: why for x, why in found.sites.items() if not (dense and x in EXPERT_SITES)}
        absent = [site for site, why in sites.items() if why is not None]
        offered = f"{len(sites) - len(absent)} of {len(sites)} sites"
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


def cost(
    study: Annotated[str, typer.Argument(help="verification, refusal or reuse.")],
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    setting: Annotated[
        list[str] | None, about("A setting of the study, e.g. draws=20; repeat for more.")
    ] = None,
    new_tokens: Annotated[
        int | None, count("Tokens that a text has on average; by default the study's limit.")
    ] = None,
    alone: Annotated[
        bool, about("Without the base (verification) or the trained model (reuse).", "--alone")
    ] = False,
    gpu: Annotated[str | None, about('One GPU, e.g. "H100 SXM"; all by default.')] = None,
    price: Annotated[float | None, about("Price of an hour of that GPU, in your currency.")] = None,
    share: Annotated[float, about("Share of a card's peak rate that is assumed.")] = 0.3,
    json_file: terminal.JsonFile = None,
) -> None:
    """Say what a study would cost on a model, step by step; nothing is loaded."""
    from interp.studies.cost import study_cost

    found = study_cost(
        study,
        model,
        settings=_settings(study, setting or []),
        new_tokens=new_tokens,
        beside=not alone,
        gpu=gpu,
        price=price,
        share=share,
    )
    total = found.total
    terminal.say(repr(found))
    terminal.table(
        ["step", "runs", "tokens", "TFLOP", "of all", "not counted"],
        [
            [
                step.step,
                f"{step.runs:z,.0f}",
                f"{step.tokens:z,.0f}",
                f"{step.flops / 1e12:,.3g}",
                f"{step.flops / total.flops:.0%}",
                step.left_out,
            ]
            for step in found.steps
        ],
    )
    money = price is not None
    terminal.table(
        ["where", "needed", "hours, at least", *["money, at least"] * money],
        [
            [
                bill.name,
                str(bill.needed),
                f"{bill.hours:,.3g}",
                *[NONE if bill.money is None else f"{bill.money:z,.2f}"] * money,
            ]
            for bill in found.bills
        ],
    )
    terminal.say(
        "Hours are calculated, not measured: here from the measured rate of matrix products in "
        f"float32, on a GPU in bfloat16 from {share:.0%} of the peak and the bandwidth in the data "
        "sheet. They are those of the arithmetic alone: with small runs, much of a GPU's time "
        "passes between operations. Needed: how many hold the weights; a study needs one that does."
    )
    for line in found.assumed:
        terminal.say(f"Assumed: {line}.")
    terminal.write(json_file, {**asdict(found), "total": asdict(total)})


def _settings(study: str, given: list[str]) -> Any:
    """The settings of a study as typed: name=value, with commas between several values.

    Raises:
        InterpError: no such study or setting, no value, or one that the study refuses.
    """
    from dataclasses import fields

    from interp.studies.cost import STUDIES

    if study not in STUDIES:
        raise unknown("study", study, STUDIES)
    kind = STUDIES[study][1]
    default, typed = kind(), {}
    for one in given:
        name, equal, value = one.partition("=")
        if not equal or not value:
            raise InterpError(f"--setting {one!r}", "no name=value", "write n=100")
        if not hasattr(default, name):
            raise unknown("setting", name, [x.name for x in fields(kind)])
        if isinstance(getattr(default, name), tuple):
            typed[name] = tuple(terminal.numbers(value) or ())
        elif isinstance(getattr(default, name), str | None):
            typed[name] = value
        else:
            typed[name] = schema.whole_number(value) if schema.is_whole(value) else _number(value)
    return kind(**typed)


def _number(text: str) -> float | str:
    """A number with a point; any other text is left for the settings to refuse."""
    try:
        return float(text)
    except ValueError:
        return text
