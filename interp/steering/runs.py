"""Runs under a steering: through hooks on any model, in the fast engine, and as texts.

All three apply the same edit to the same tokens and count what they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import stops_of
from interp.core.chat_prompts import ChatPrompts, PromptsLike
from interp.core.components import within
from interp.core.errors import InterpError
from interp.engine.decode import SiteChange, SiteChanges, Stream
from interp.engine.forward import Runner
from interp.engine.readout import Progress, cut
from interp.models.chat import plain_prompts
from interp.models.language_model import Address, LanguageModel
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit, Tokens
from interp.runs.hooks import intervene
from interp.runs.text_runs import Generation, TextRun, embedded, in_batches
from interp.steering.edits import Steering

TOGETHER = 4096
"""Prompt tokens run at once."""


@dataclass(kw_only=True)
class SteeringTally:
    """What a steering changed in prompts of these lengths.

    `entries` are (prompts, positions, squared changes) by site.
    """

    name: str
    lengths: Tensor
    entries: dict[Address, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, at: Address, prompts: Tensor, positions: Tensor, change: Tensor) -> None:
        """Count changed tokens."""
        squared = change.double().pow(2).sum(-1)
        self.entries.setdefault(at, []).append((prompts.cpu(), positions.cpu(), squared.cpu()))

    def repeat(self, prompt: Tensor, others: Tensor) -> None:
        """Count what was changed in one prompt so far in others too, which begin alike."""
        for kept in self.entries.values():
            for numbers, positions, squared in list(kept):
                mine = numbers == int(prompt)
                for other in others.tolist() if bool(mine.any()) else ():
                    same = torch.full_like(numbers[mine], other)
                    kept.append((same, positions[mine], squared[mine]))

    def until(self, ends: Mapping[int, int]) -> None:
        """Forget entries from a position of each prompt on: what ran after a text had ended."""
        limit = torch.tensor([ends[prompt] for prompt in range(len(self.lengths))])
        for at, kept in self.entries.items():
            self.entries[at] = [
                (p[inside], where[inside], squared[inside])
                for p, where, squared in kept
                for inside in [where < limit[p]]
            ]

    @property
    def tokens(self) -> np.ndarray:
        """(prompts,) changes made, counting every site."""
        return self._sum(lambda squared: torch.ones_like(squared))

    @property
    def norm(self) -> np.ndarray:
        """(prompts,) root mean square L2 norm of a change; nan where there was none."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(self._sum(lambda squared: squared) / self.tokens)

    def _sum(self, of: Callable[[Tensor], Tensor]) -> np.ndarray:
        total = torch.zeros(len(self.lengths), dtype=torch.float64)
        for kept in self.entries.values():
            for prompts, _, squared in kept:
                total.index_add_(0, prompts, of(squared).double())
        return total.numpy()

    def to_dataframe(self) -> Any:
        """One row per site: changed tokens, and the root mean square norm of their change."""
        import pandas as pd

        rows = []
        for (layer, site), kept in self.entries.items():
            squared = torch.cat([values for _, _, values in kept])
            norm = float(squared.mean().sqrt()) if len(squared) else float("nan")
            rows.append({"site": f"L{layer}.{site}", "tokens": len(squared), "norm": norm})
        return pd.DataFrame(rows, columns=["site", "tokens", "norm"])

    def __str__(self) -> str:
        rows = self.to_dataframe().itertuples()
        lines = [f"  {row.site}: {row.tokens} tokens, change {row.norm:.3f}" for row in rows]
        return "\n".join([self.name, *(lines or ["  nothing was changed"])])


@dataclass(frozen=True, kw_only=True)
class SteeredRun:
    """The prompts run once: (prompts, d_vocab) logits at the last token, and states there.

    `states` is (prompts, layers, d_model) of `site`, after any edit of it; None if not asked for.
    """

    logits: Tensor
    states: Tensor | None
    tally: SteeringTally


@contextmanager
def steer(
    model: LanguageModel, steering: Steering, prompts: PromptsLike
) -> Iterator[SteeringTally]:
    """Every run of these prompts inside the block is steered, on any model, through hooks.

    A run may go on after a prompt: its further tokens count as generated.

    Raises:
        InterpError: see `Steering.require`; during a run, a prompt more than were given.
    """
    given = plain_prompts(model, prompts)
    steering.require(model, given)
    tally = _tally(steering, given)

    with intervene(model, _change(steering, tally)):
        yield tally


def steering_change(model: LanguageModel, steering: Steering, prompts: PromptsLike) -> Change:
    """A steering of some prompts as a `Change`, for `interp.intervene`, `ablate` and `generate`.

    Raises:
        InterpError: see `Steering.require`; during a run, a prompt more than were given.
    """
    given = plain_prompts(model, prompts)
    steering.require(model, given)
    return _change(steering, _tally(steering, given))


def _change(steering: Steering, tally: SteeringTally) -> Change:
    """A steering of the prompts whose lengths the tally holds, counted there."""

    def value(at: Address, old: Tensor, tokens: Tokens) -> Tensor:
        prompts, n = tokens.prompts.cpu(), len(tally.lengths)
        if len(prompts) and int(prompts.max()) >= n:
            raise InterpError(f"prompt {int(prompts.max())}", f"{n} were given", "run these")
        return _changed(steering, tally, at, old, prompts, tokens.positions.cpu())

    edits = (
        Edit(name=steering.name, layer=at[0], site=at[1], value=partial(value, at))
        for at in steering.edits
    )
    return Change(name=steering.name, edits=tuple(edits))


def run_steered(
    model: LanguageModel,
    prompts: PromptsLike,
    steering: Steering | None = None,
    *,
    layers: Sequence[int] = (),
    site: str = "resid_post",
) -> SteeredRun:
    """The next token of every prompt under a steering (None: plain), by the fast engine if any.

    Args:
        model: any model.
        prompts: of the steering's format.
        steering: what is changed.
        layers: whose last-token states are kept.
        site: resid_pre, resid_mid or resid_post.

    Raises:
        InterpError: see `Steering.require`; inside `intervene`.
    """
    model.refuse_changed("steering", "steer(), which adds to them, and run_with_cache()")
    model.require_site(site)
    given = plain_prompts(model, prompts)
    used = steering or _nothing(model, given)
    chosen = within(layers, model.n_layers, "layer", model.name) if len(layers) else []
    if model.decoder is None:
        with steer(model, used, given) as tally:
            if not chosen:
                logits = model.last_logits(given.rows).cpu()
                return SteeredRun(logits=logits, states=None, tally=tally)
            seen = run_with_cache(model, given.rows, sites=[site], layers=chosen, positions="last")
        states = torch.stack([seen[layer, site] for layer in chosen], 1)
        return SteeredRun(logits=seen.logits, states=states, tally=tally)
    used.require(model, given)
    tally = _tally(used, given)
    kept = {
        (layer, site): torch.zeros(len(given), model.d_model, dtype=model.dtype) for layer in chosen
    }
    engine = _Engine(
        model=model, runner=Runner(model.decoder), steering=used, tally=tally, keep=kept
    )
    logits = torch.zeros(len(given), model.decoder.d_vocab, dtype=model.dtype)
    order = tally.lengths.argsort(stable=True)
    with torch.no_grad():
        for block in cut(order.numpy(), tally.lengths[order].numpy(), TOGETHER):
            logits[block] = engine.prefill([given.rows[i] for i in block], block.tolist()).cpu()
    states = torch.stack(list(kept.values()), 1) if chosen else None
    return SteeredRun(logits=logits, states=states, tally=tally)


def generate_steered(
    model: LanguageModel,
    prompts: PromptsLike,
    steering: Steering | None = None,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    rows: int = 64,
    progress: Progress | None = None,
) -> tuple[list[Generation], SteeringTally]:
    """Greedy texts, steered at every token of the phase; cached and batched, token for token.

    One run, unlike `interp.runs.generation.generate`, which keeps a plain run beside the changed
    one. With None it is the regenerated baseline under the same decoding.

    Raises:
        InterpError: no fast engine, see `Steering.require`, or more tokens than positions.
    """
    decoder = model.require_decoder("generating")
    model.refuse_changed("generating", "steer() and generate(), which see them")
    given = plain_prompts(model, prompts)
    used = steering or _nothing(model, given)
    used.require(model, given)
    tally = _tally(used, given)
    engine = _Engine(model=model, runner=Runner(decoder), steering=used, tally=tally)
    stop = stops_of(stop)
    [made] = in_batches(
        lambda: _SteeredText(engine, stop),
        given.rows,
        max_new_tokens=max_new_tokens,
        rows=rows,
        progress=progress,
    )
    tally.until({i: _fed(one, stop) for i, one in enumerate(made)})
    return made, tally


def _nothing(model: LanguageModel, prompts: ChatPrompts) -> Steering:
    return Steering(name="plain", edits={}, format=prompts.format, model_hash=model.hash)


def _tally(steering: Steering, prompts: ChatPrompts) -> SteeringTally:
    return SteeringTally(
        name=steering.name, lengths=torch.tensor([len(row) for row in prompts.rows])
    )


def _changed(
    steering: Steering,
    tally: SteeringTally,
    at: Address,
    old: Tensor,
    prompts: Tensor,
    positions: Tensor,
) -> Tensor:
    """States (n, d_model) of some tokens, edited; bit-equal where the strength is 0."""
    strength = steering.strengths(prompts, positions - tally.lengths[prompts])
    on = strength != 0
    if not bool(on.any()):
        return old
    chosen = on.to(old.device)
    # In float64, so that what is left of an ablated direction is the rounding of the result.
    wide = old[chosen].float() if old.device.type == "mps" else old[chosen].double()
    delta = steering.edits[at].delta(wide, prompts[on].to(old.device))
    new = old.clone()
    new[chosen] = (wide + delta * strength[on, None].to(wide)).to(old.dtype)
    tally.add(at, prompts[on], positions[on], new[chosen] - old[chosen])
    return new


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """The fast engine with a steering in force; `keep` is filled with last-token states."""

    model: LanguageModel
    runner: Runner
    steering: Steering
    tally: SteeringTally
    keep: Mapping[Address, Tensor] = field(default_factory=dict)

    def extend(self, stream: Stream, tokens: Tensor, counts: Tensor, names: Tensor) -> Tensor:
        """The final residual after new tokens of the rows called `names`.

        What all rows begin with, such as a template's system prompt, is run once.
        """
        shared = self._shared(stream, tokens, counts)
        if shared:
            one = Stream.empty(self.runner, 1, shared)
            self._run(one, tokens[:1, :shared], counts[:1] * 0 + shared, names[:1])
            for mine, common in zip(
                stream.keys + stream.values, one.keys + one.values, strict=True
            ):
                mine[:, :, :shared] = common
            stream.lengths += shared
            self.tally.repeat(names[:1], names[1:])
            tokens, counts = tokens[:, shared:], counts - shared
        return self._run(stream, tokens, counts, names)

    def _shared(self, stream: Stream, tokens: Tensor, counts: Tensor) -> int:
        """How many first tokens all rows share that are changed alike in all of them."""
        own = [e for e in self.steering.edits.values() if e.shift is not None and len(e.shift) > 1]
        if bool(stream.lengths.any()) or len(tokens) < 2 or own or self.steering.gate is not None:
            return 0
        most = int(counts.min()) - 1
        if (places := self.steering.positions) is not None:
            # What is counted from the end stands elsewhere in each row.
            most = min(most, int(counts.min()) + min(places))
        alike = (tokens[:, :most] == tokens[:1, :most]).all(0)
        return int(alike.long().cumprod(0).sum())

    def _run(self, stream: Stream, tokens: Tensor, counts: Tensor, names: Tensor) -> Tensor:
        x = embedded(self.runner.decoder, tokens, stream.lengths)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        changes = self._changes(steps < counts[:, None], counts, names)
        return stream.extend(x, counts, changes=changes, names=names)

    def prefill(self, rows: Sequence[Sequence[int]], numbers: Sequence[int]) -> Tensor:
        """Logits at the last token of prompts with these numbers."""
        device = self.runner.device
        counts = torch.tensor([len(row) for row in rows])
        tokens = torch.zeros(len(rows), int(counts.max()), dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        stream = Stream.empty(self.runner, len(rows), tokens.shape[1])
        names = torch.tensor(list(numbers), device=device)
        last = self.extend(stream, tokens.to(device), counts.to(device), names)
        return self.runner.decoder.logits(self.runner.decoder.ln_final(last))

    def _changes(self, real: Tensor, counts: Tensor, names: Tensor) -> SiteChanges:
        ends = torch.zeros(int(names.max()) + 1, dtype=torch.long, device=names.device)
        steered = _change(self.steering, self.tally).decoding(ends, real)

        def one(at: Address) -> SiteChange:
            def change(value: Tensor, names: Tensor, positions: Tensor) -> Tensor:
                if at in steered:
                    value = steered[at](value, names, positions)
                if at in self.keep:
                    last = value[torch.arange(len(value), device=value.device), counts - 1]
                    self.keep[at][names.cpu()] = last.cpu()
                return value

            return change

        return {at: one(at) for at in {*steered, *self.keep}}


class _SteeredText(TextRun):
    """The plain generation, whose one run is a steered one."""

    def __init__(self, engine: _Engine, stop: Sequence[str]) -> None:
        super().__init__(engine.model, (None,), None, 1, stop)
        self.engine = engine

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        return self.engine.extend(self.plain, tokens, counts, self.names)


def _fed(made: Generation, stop: Sequence[str]) -> int:
    """How many tokens of a text were run: all but the last, unless an end token followed it."""
    ended = made.stopped and not any(mark in made.text for mark in stop)
    return len(made.prompt) + len(made.tokens) - (0 if ended else 1)
