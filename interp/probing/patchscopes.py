"""Patchscopes: a state of one prompt put into another prompt, which the model then continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.core.arguments import listed, place_of, reads_arguments
from interp.core.components import within
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt
from interp.core.run_options import Progress
from interp.core.schema import Count, Seed, checked
from interp.engine.stopping import StopCheck, stoppable
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit, ValueTable
from interp.runs.generation import generate
from interp.runs.hooks import intervene

if TYPE_CHECKING:
    from pandas import DataFrame

REPEAT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""A target prompt that asks the model to repeat the word at its last token, as published."""

SOURCE, CONTROL, DRAWN = "source", "another source", "random state"


@dataclass(frozen=True, kw_only=True)
class Patchscopes(Tabled):
    """What a model writes after a state of another prompt was put into a prompt.

    Attributes:
        source, target: the texts of the two prompts.
        token: the token whose state was taken.
        layers: the layers that it was taken from and put into, one pair after the other.
        texts: by what was put in: "source", and the controls "another source" (one text for each
            layer and other prompt, joined by " | ") and "random state" (of the same length).
        plain: the continuation of the target with nothing put in.
    """

    source: str
    target: str
    token: str
    layers: tuple[tuple[int, int], ...]
    texts: dict[str, tuple[str, ...]]
    plain: str

    def __repr__(self) -> str:
        (first, into), text = self.layers[0], self.texts[SOURCE][0]
        return (
            f"Patchscopes({self.token!r}, {len(self.layers)} pairs of layers; "
            f"L{first} into L{into}: {text!r:.60}, plain {self.plain!r:.40})"
        )

    def mentions(self, word: str, of: str = SOURCE) -> list[bool]:
        """Whether each text contains a word, at any capitals; `of` may name a control.

        Raises:
            InterpError: an unknown control.
        """
        if of not in self.texts:
            raise unknown("state put in", of, self.texts)
        return [word.lower() in text.lower() for text in self.texts[of]]

    def to_dataframe(self) -> DataFrame:
        """One row per pair of layers, with a column for what was put in."""
        from pandas import DataFrame

        rows: list[dict[str, Any]] = [{"from layer": a, "into layer": b} for a, b in self.layers]
        for name, some in self.texts.items():
            for row, text in zip(rows, some, strict=True):
                row[name] = text
        return DataFrame(rows)


@reads_arguments
def patchscope(
    model: LanguageModel,
    source: Prompt,
    target: Prompt = REPEAT,
    *,
    layers: int | Sequence[int],
    into: int | Sequence[int] | None = None,
    position: str | int = "last",
    at: str | int = "last",
    others: Sequence[Prompt] = (),
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
    cancelled: StopCheck = lambda: False,
) -> Patchscopes:
    """Put the state of a token of one prompt into another prompt, and let the model go on.

        h_into[at] of the target run <- h_layer[position] of the source run,   both at resid_post

    The state is put in once, at one token, and the model generates greedily after it. Beside it
    stand the same with a random state of the same length, with the last state of other source
    prompts if given, and the target alone.

    Args:
        model: a loaded model.
        source: the prompt whose state is taken.
        target: the prompt it is put into; by default one that asks to repeat a word.
        layers: layers that the state is taken from.
        into: the layer it is put into, one for all or one for each; by default the same.
        position: the token of the source.
        at: the token of the target.
        others: other sources, as a control: what appears for them too is not from this source.
        max_new_tokens: the largest number of new tokens.
        seed: of the random states.
        progress: called with (pairs of layers done, in all).
        cancelled: asked in every layer; the run stops when it returns True.

    Raises:
        InterpError: layers or tokens that do not exist, or other numbers of layers.

    Source: Ghandeharioun et al. 2024 (arXiv 2401.06102).
    """
    chosen = within(listed(layers), model.n_layers, "layer", model.name)
    put = chosen if into is None else within(listed(into), model.n_layers, "layer", model.name)
    put = put * len(chosen) if len(put) == 1 else put
    if len(put) != len(chosen) or not chosen:
        found = f"{len(chosen)} layers into {len(put)}"
        raise InterpError("a patchscope", found, "give one layer to put into, or one for each")
    tokens, seed = checked(Count, max_new_tokens, "new tokens"), checked(Seed, seed, "a seed")
    generator = torch.Generator().manual_seed(seed)
    first, aim = model.tokenize(source), model.tokenize(target)
    place, there = place_of(position, first, {}, "the source"), place_of(at, aim, {}, "the target")
    rows = [first.tokens, *(model.tokenize(other).tokens for other in others)]
    with stoppable(cancelled):
        seen = run_with_cache(
            model,
            rows,
            sites="resid_post",
            layers=sorted({*chosen}),
            positions=[place, *[-1] * len(others)],
        )
        plain = generate(model, [aim.tokens], tokens)[0].text
        texts: dict[str, list[str]] = {SOURCE: [], DRAWN: []}
        if others:
            texts[CONTROL] = []
        for number, (layer, to) in enumerate(zip(chosen, put, strict=True)):
            states = seen[layer, "resid_post"]
            drawn = torch.randn(states.shape[1], generator=generator).to(states)
            drawn *= states[0].norm() / drawn.norm()
            given = torch.cat([states[:1], drawn[None], states[1:]])
            made = _continued(model, aim.tokens, given, to, there, tokens)
            texts[SOURCE].append(made[0])
            texts[DRAWN].append(made[1])
            if others:
                texts[CONTROL].append(" | ".join(made[2:]))
            if progress is not None:
                progress(number + 1, len(chosen))
    return Patchscopes(
        source="".join(first.strings),
        target="".join(aim.strings),
        token=first.strings[place],
        layers=tuple(zip(chosen, put, strict=True)),
        texts={name: tuple(some) for name, some in texts.items()},
        plain=plain,
    )


def _continued(
    model: LanguageModel,
    target: Sequence[int],
    states: Tensor,
    layer: int,
    place: int,
    max_new_tokens: int,
) -> list[str]:
    """The continuation of the target with each state (n, d_model) put in."""
    edit = Edit(
        name="patchscope",
        layer=layer,
        site="resid_post",
        value=ValueTable(values=states[:, None, None]),
        positions=place,
    )
    change = Change(name="patchscope", edits=(edit,))
    with intervene(model, [change]):
        made = generate(model, [tuple(target)] * len(states), max_new_tokens)
    return [one.text for one in made]
