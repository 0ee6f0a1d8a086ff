"""Greedy text of a model inside `intervene`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interp.core.run_options import Progress
from interp.engine.decode import CHANGEABLE, SiteChange
from interp.engine.stopping import stop_if_asked
from interp.models.language_model import Address, LanguageModel
from interp.runs.hooks import EditHook
from interp.runs.text_runs import (
    Generation,
    TextRun,
    embedded,
    end_tokens,
    in_batches,
    padded_tokens,
    require_length,
    stops,
    text_of,
)


def intervened_texts(
    model: LanguageModel,
    prompts: list[tuple[int, ...]],
    stop: Sequence[str],
    *,
    max_new_tokens: int,
    rows: int,
    progress: Progress | None,
) -> list[Generation]:
    """The greedy texts of a model inside `intervene`; see `interp.generate`.

    The cache is used if every edit changes tokens one by one, at a site that the fast engine can
    change during decoding. Otherwise the whole texts are run for every token.

    Raises:
        InterpError: no token asked for, or more than the model has positions.
    """
    hooks: dict[Address, list[EditHook]] = {}
    cached = model.decoder is not None
    for group in model.active:
        for at, found in group.items():
            ours = [hook for hook in found if isinstance(hook, EditHook)]
            cached &= len(ours) == len(found) and at[1] in CHANGEABLE
            cached &= all(hook.edit.by_token and not hook.edit.reads for hook in ours)
            hooks.setdefault(at, []).extend(ours)
            for hook in ours:
                hook.edit.require(len(prompts))
    if cached:
        return in_batches(
            lambda: IntervenedText(model, hooks, stop),
            prompts,
            max_new_tokens=max_new_tokens,
            rows=rows,
            progress=progress,
        )[0]
    require_length(model, prompts, max_new_tokens)
    ends, texts, stopped = end_tokens(model), [list(p) for p in prompts], [False] * len(prompts)
    for _ in range(max_new_tokens if prompts else 0):
        stop_if_asked()
        # Finished texts are run as well: an edit knows a prompt by its number.
        chosen = model.last_logits(texts).argmax(-1).tolist()
        for number, token in enumerate(chosen):
            if stopped[number]:
                continue
            stopped[number] = token in ends
            if not stopped[number]:
                texts[number].append(token)
                stopped[number] = stops(model, texts[number][len(prompts[number]) :], stop)
        if all(stopped):
            break
    if progress is not None:
        progress(len(prompts), len(prompts))
    return [
        Generation(
            prompt=prompt,
            tokens=tuple(text[len(prompt) :]),
            text=text_of(model, text[len(prompt) :]),
            stopped=end,
            fired=(),
        )
        for prompt, text, end in zip(prompts, texts, stopped, strict=True)
    ]


class IntervenedText(TextRun):
    """Texts of a model with changes in force, equal to running the whole text for every token.

    A cached token stays valid as long as the same edits apply to it and to the tokens before it.
    Otherwise (the token that was "last" one step ago) the cache is cut before it, and it is run
    again.
    """

    crowded = 0.999

    def __init__(
        self,
        model: LanguageModel,
        hooks: Mapping[Address, list[EditHook]],
        stop: Sequence[str],
    ) -> None:
        super().__init__(model, (None,), None, 1, stop)
        self.hooks = hooks
        self.texts: list[list[int]] = []
        self.held: list[list[set[int]]] = []

    def _start(
        self, numbers: list[int], prompts: list[tuple[int, ...]], most: int
    ) -> tuple[Tensor, Tensor]:
        self.texts = [[] for _ in prompts]
        self.held = [[set() for _ in self._every] for _ in prompts]
        return super()._start(numbers, prompts, most)

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        self.texts = [list(self.texts[row]) for row in rows.tolist()]
        self.held = [self.held[row] for row in rows.tolist()]

    @property
    def _every(self) -> list[EditHook]:
        return [hook for hooks in self.hooks.values() for hook in hooks]

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """The changed run over new tokens, and over tokens to which other edits apply now."""
        kept = self.plain.lengths.tolist()
        for row, count in enumerate(counts.tolist()):
            self.texts[row] += tokens[row, :count].tolist()
            prompt = int(self.names[row])
            now = [set(hook.places(prompt, self.texts[row])) for hook in self._every]
            moved = [p for old, new in zip(self.held[row], now, strict=True) for p in old ^ new]
            kept[row] = min([kept[row], *moved])
            self.held[row] = now
        start = torch.tensor(kept, device=tokens.device)
        self.plain.lengths = start
        rows = [text[begin:] for text, begin in zip(self.texts, kept, strict=True)]
        fed, counts = padded_tokens(rows, tokens.device)
        x = embedded(self.decoder, fed, start)
        changes = {at: self._change(hooks, kept) for at, hooks in self.hooks.items()}
        return self.plain.extend(x, counts, changes=changes, names=self.names)

    def _change(self, hooks: list[EditHook], kept: list[int]) -> SiteChange:
        def change(value: Tensor, names: Tensor, positions: Tensor) -> Tensor:
            changed = value.clone()
            for hook in hooks:
                for row, (prompt, begin) in enumerate(zip(names.tolist(), kept, strict=True)):
                    where = hook.places(prompt, self.texts[row])
                    where = [place for place in where if place >= begin]
                    columns = [place - begin for place in where]
                    length = len(self.texts[row])
                    hook.change(changed, row, prompt, where, columns, length)
            return changed

        return change
