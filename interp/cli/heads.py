"""`interp heads atlas` and `interp strongest`: what heads do by themselves, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import about, count, not_negative, whole

if TYPE_CHECKING:
    from interp.heads.atlas import HeadAtlas

heads_app = typer.Typer(help="Heads: what each does by itself.", no_args_is_help=True)

TEXTS_HELP = 'A file with a text in every line; .jsonl: {"text": "..."}.'
CorpusFile = Annotated[
    Path | None, about(f"{TEXTS_HELP} By default the 96 passages that ship.", "--texts")
]


@heads_app.callback()
def heads() -> None:
    """Heads: what each does by itself."""


def atlas(
    model: Annotated[
        str, typer.Argument(help="A model's name; see `interp models`.")
    ] = terminal.DEFAULT_MODEL,
    texts: CorpusFile = None,
    n: Annotated[int, count("Number of prompts of repeated random tokens.", "--n")] = 24,
    length: Annotated[int, count("Most tokens of the part that is repeated.")] = 25,
    least: Annotated[
        float, not_negative("Attention beyond the control that a head must have to be named.")
    ] = 0.1,
    top: Annotated[int, count("Heads of each role to print.")] = 5,
    seed: terminal.SeedOption = 0,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """Where every head attends on any text, and whether it copies: roles with controls."""
    from interp.heads.atlas import head_atlas

    loaded = terminal.load(model, dtype)
    with terminal.status("measuring every head"):
        found = head_atlas(loaded, texts, n=n, length=length, least=least, seed=seed)
    _print_atlas(found, top)
    if json_file is not None:
        rows = found.to_dataframe().to_dict("records")
        strongest = found.strongest(top).to_dict("records")
        named = {kind: found.named(kind) for kind in found.scores}
        value = {"model": found.model, "named": named, "strongest": strongest, "heads": rows}
        terminal.write(json_file, value)


def _print_atlas(found: HeadAtlas, top: int) -> None:
    for kind, n in found.n.items():
        named = {role: heads for role, heads in found.named(kind).items() if heads}
        roles = "; ".join(f"{len(heads)} {role}" for role, heads in named.items()) or "none"
        terminal.say(f"Heads of {found.model} with a role, {kind} (n={n}): {roles}.")
    rows = found.strongest(top)
    terminal.table(
        [
            "role",
            "prompts",
            "head",
            "attention",
            "95 % interval",
            "chance",
            "beyond others",
            "named",
        ],
        [
            [
                row.role,
                row.prompts,
                row.component,
                terminal.number(row.value),
                terminal.spread(row.low, row.high),
                terminal.number(row.chance),
                terminal.number(row.excess, "+"),
                "yes" if row.named else "",
            ]
            for row in rows.itertuples()
        ],
    )
    terminal.say(
        "Chance: uniform attention. Beyond others: attention minus that to other keys of the same "
        f"queries at like distances. Named: surely above {found.least:g}, corrected for all heads."
    )
    if found.copying is not None:
        terminal.say(repr(found.copying))


def strongest(
    component: Annotated[str, typer.Argument(help="A head such as L5H3, or a neuron: L5N10.")],
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    texts: CorpusFile = None,
    top: terminal.Top = 10,
    context: Annotated[int, whole("Tokens shown before and after.")] = 8,
    negative: Annotated[bool, about("The most negative activations.", "--negative")] = False,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """The tokens of a corpus at which a head or neuron is most active. Resumes if stopped."""
    from interp.core.corpus import shipped_passages
    from interp.plots.style import visible
    from interp.runs.most_active import strongest_positions

    loaded = terminal.load(model, dtype)
    corpus = shipped_passages() if texts is None else texts
    with terminal.status("reading the texts"):
        found = strongest_positions(
            loaded, component, corpus, k=top, context=context, negative=negative
        )
    measured = "activation" if found.component.site == "post" else "length written"
    terminal.say(
        f"{measured.capitalize()} of {found.component}: mean {terminal.number(found.mean)}, "
        f"standard deviation {found.sd:z.3f} over {found.n_tokens} tokens of {found.n_texts} texts."
    )
    terminal.table(
        [measured, "text", "before", "token", "after", "attends to"],
        [
            [
                terminal.number(one.value),
                str(one.text),
                visible(one.before),
                visible(one.token),
                visible(one.after),
                f"{visible(one.key)} {terminal.number(one.attention)}" if one.key else "",
            ]
            for one in found.positions
        ],
    )
    terminal.write(json_file, found.to_dataframe().to_dict("records"))


heads_app.command(epilog="Example: interp heads atlas smollm2-135m-instruct --json atlas.json")(
    atlas
)
