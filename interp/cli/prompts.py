"""`interp look`, `interp scan` and `interp corrupt`: any prompt, any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.terminal import about, count

if TYPE_CHECKING:
    from interp.overview.findings import Scan
    from interp.overview.logit_parts import LogitParts
    from interp.overview.one_prompt import Look

PromptArgument = Annotated[str, typer.Argument(help="The prompt, in quotes.")]
Answer = Annotated[str | None, about("The answer to explain; the likeliest next token by default.")]
Wrong = Annotated[
    str | None,
    about("What it is compared with, of as many tokens; the likeliest other tokens by default."),
]
TopRows = Annotated[int, count("Rows of each table.", "--top")]


def look(
    prompt: PromptArgument,
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    answer: Answer = None,
    wrong: Wrong = None,
    top: TopRows = 10,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """What one prompt shows: predictions, lens, attention, and who writes the answer."""
    from interp.overview.one_prompt import look as look_at

    loaded = terminal.load(model, dtype)
    seen = look_at(loaded, prompt, answer, wrong)
    _print_look(seen, top)
    terminal.write(json_file, seen.to_dict() if json_file is not None else {})


def _print_look(seen: Look, top: int) -> None:
    from interp.plots.style import visible

    parts, lens, following = seen.attribution(), seen.lens, seen.next_tokens(top)
    terminal.say(
        f"{seen.run.model.name} continues these {seen.run.n_tokens} tokens with "
        f"{following[0].label} (probability {following[0].value:z.3f}): {seen.run.prompt.shown()}"
    )
    terminal.table(["next token", "probability"], [[t.label, f"{t.value:z.3f}"] for t in following])
    answer, ranks = visible(str(lens.words[0])), lens.word_rank[0, :, -1, 0]
    first = [layer for layer in lens.layers if (ranks[layer:] == 1).all()]
    terminal.say(
        f"The logit lens at the last token puts {answer} first from layer {first[0]} on."
        if first
        else f"The logit lens at the last token does not end with {answer} first."
    )
    terminal.table(
        ["layer", "likeliest", "probability", f"rank of {answer}"],
        [
            [str(i), best.label, f"{best.value:z.3f}", str(int(ranks[i]))]
            for i, best in ((layer, lens.top(layer)[0]) for layer in lens.layers)
        ],
    )
    terminal.say(
        f"{parts.words} is {parts.logit_difference:+z.3f} logits; {len(parts.parts)} parts add up "
        f"to {parts.total:+z.3f}. The largest are below. They write the answer directly: what acts "
        "through other parts is found by `interp scan`."
    )
    terminal.table(
        ["part", "logits", "most of it from"],
        [
            [part.label, terminal.number(part.value, "+"), _source(parts, part.label)]
            for part in parts.top(top)
        ],
    )
    terminal.say("Neurons that add most to it, either way, and what they write:")
    terminal.table(
        ["neuron", "logits", "activation", "raises here", "lowers here"],
        [
            [
                str(one.component),
                terminal.number(one.value, "+"),
                terminal.number(one.activation, "+"),
                *(" ".join(token.label for token in tokens[:3]) for tokens in one.here),
            ]
            for one in seen.neurons(top)
        ],
    )


def _source(parts: LogitParts, label: str) -> str:
    """The token through which a head adds most, and how much; "" for other parts."""
    from interp.plots.style import visible

    layer, is_head, head = label.removeprefix("L").partition("H")
    if not is_head or not layer.isdigit():
        return ""
    sources = parts.by_source(int(layer), int(head))
    most = int(abs(sources).argmax())
    return f"{visible(parts.run.prompt.strings[most])} {terminal.number(sources[most], '+')}"


def scan(
    prompt: PromptArgument,
    foil: Annotated[
        str | None,
        about("A prompt of as many tokens with another answer, or a wrong answer."),
    ] = None,
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    answer: Answer = None,
    wrong: Wrong = None,
    top: TopRows = 10,
    draws: Annotated[int, count("Others of its kind that each is compared with.")] = 20,
    seed: terminal.SeedOption = 0,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """The heads, MLPs and tokens that matter most after a prompt, each confirmed by a run."""
    from interp.overview.findings import scan as scan_prompt

    loaded = terminal.load(model, dtype)
    with terminal.status("scanning"):
        found = scan_prompt(
            loaded, prompt, foil, answer=answer, wrong=wrong, k=top, draws=draws, seed=seed
        )
    _print_findings(found)
    terminal.write(json_file, found.to_dict())


def _print_findings(found: Scan) -> None:
    from interp.plots.style import visible

    terminal.say(found.sentences[0])
    if found.changed:
        changed = ", ".join(f"{visible(a)} -> {visible(b)}" for a, b in found.changed)
        terminal.say(f"The foil changes {changed}.")
    for sentence in found.sentences[1:4]:
        terminal.say(f"- {sentence}")
    terminal.table(
        ["component", "effect", "by gradient", "writes directly", "larger than", "note"],
        [
            [
                one.label,
                *(
                    "–" if x is None else terminal.number(x, "+")
                    for x in (one.exact, one.estimate, one.direct)
                ),
                one.beside.removeprefix("larger than "),
                one.verdict,
            ]
            for one in found.found
        ],
    )
    terminal.say(
        f"Effects in logits, n = 1. The gradient ranked {found.of} components and tokens; its "
        f"correlation with the exact effects is {found.agreement:z.2f}. To test a finding, measure "
        "it on a set of prompts with `interp patch`."
    )


def corrupt(
    prompt: PromptArgument,
    kind: Annotated[str, about("entity, number, negation, role or paraphrase.")],
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    target: Annotated[str, about("The part of the prompt that changes.")] = "",
    words: Annotated[str, about("What it may become, separated by |.")] = "",
    seed: terminal.SeedOption = 0,
    json_file: terminal.JsonFile = None,
) -> None:
    """A corrupted prompt of as many tokens, and where the two differ."""
    from interp.tasks.corruptions import corrupt as made_by

    asked: Any = kind  # checked by the function
    some = words.split("|") if words else []
    made = made_by(terminal.load(model), prompt, asked, target=target, words=some, seed=seed)
    terminal.say(f"{len(made.differ)} of {len(made.tokens)} tokens differ.")
    rows = [[str(i), repr(made.tokens[i]), repr(made.others[i])] for i in made.differ]
    terminal.table(["token", "clean", "corrupted"], rows)
    terminal.table(["prompt", "text"], [["clean", made.clean], ["corrupted", made.corrupted]])
    told = {"clean": made.clean, "corrupted": made.corrupted, "differ": list(made.differ)}
    terminal.write(json_file, told)
