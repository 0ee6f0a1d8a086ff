"""Steered runs: through hooks on any model, in the fast engine, and as texts.

All three apply the same `Change` to the same tokens, and count the changed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, stops_of
from interp.core.chat_prompts import ChatPrompts, PromptsLike
from interp.core.run_options import Progress
from interp.core.schema import Brief
from interp.engine.decode import Stream
from interp.engine.forward import Runner
from interp.engine.readout import cut
from interp.models.chat import plain_prompts
from interp.models.language_model import Address, LanguageModel
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit, Tokens
from interp.runs.hooks import intervene
from interp.runs.text_runs import (
    ChangedText,
    Generation,
    extended,
    in_batches,
    padded_tokens,
)
from interp.steering.edits import Steering, sites_of

TOGETHER = 4096
"""Prompt tokens run at once."""


@dataclass(kw_only=True)
class SteeringTally(Tabled):
    """The tokens that a steering changed in prompts of these lengths.

    `entries` holds, by site, (prompts, positions, squared L2 norms of the changes).
    """

    name: str
    lengths: Tensor
    entries: dict[Address, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, at: Address, prompts: Tensor, positions: Tensor, change: Tensor) -> None:
        """Count changed tokens."""
        squared = change.double().pow(2).sum(-1)
        self.entries.setdefault(at, []).append((prompts.cpu(), positions.cpu(), squared.cpu()))

    def repeat(self, prompt: Tensor, others: Tensor) -> None:
        """Count the changes of one prompt so far for others too, which begin with these tokens."""
        for kept in self.entries.values():
            for numbers, positions, squared in list(kept):
                mine = numbers == int(prompt)
                for other in others.tolist() if bool(mine.any()) else ():
                    same = torch.full_like(numbers[mine], other)
                    kept.append((same, positions[mine], squared[mine]))

    def until(self, ends: Mapping[int, int]) -> None:
        """Drop the entries from a position of each prompt on, which ran after its text ended."""
        limit = torch.tensor([ends[prompt] for prompt in range(len(self.lengths))])
        for at, kept in self.entries.items():
            self.entries[at] = [
                (p[inside], where[inside], squared[inside])
                for p, where, squared in kept
                for inside in [where < limit[p]]
            ]

    @property
    def tokens(self) -> np.ndarray:
        """(prompts,) number of changes, over all sites."""
        return self._sum(lambda squared: torch.ones_like(squared))

    @property
    def norm(self) -> np.ndarray:
        """(prompts,) root mean square L2 norm of a change; nan for prompts without changes."""
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
        lines = [f"  {row.site}: {row.tokens} tokens, change {row.norm:z.3f}" for row in rows]
        return "\n".join([self.name, *(lines or ["  nothing was changed"])])


@dataclass(frozen=True, kw_only=True)
class SteeredRun(Brief):
    """(prompts, d_vocab) logits at the last token, and (prompts, layers, d_model) states there.

    `states` are taken after the site's own edit; they are None if no layers were given.
    """

    logits: Tensor
    states: Tensor | None
    tally: SteeringTally


@reads_arguments
@contextmanager
def steer(
    model: LanguageModel, steering: Steering, prompts: PromptsLike
) -> Iterator[SteeringTally]:
    """Every run of these prompts inside the block is steered, on any model, through hooks.

    A text that continues a prompt counts as generated after the prompt's end.

    Raises:
        InterpError: see `Steering.require`; during a run, a text that does not begin with the
            prompt given at its place, or more texts than prompts.
    """
    change, tally = _counted(model, steering, prompts)
    with intervene(model, change):
        yield tally


@reads_arguments
def steering_change(model: LanguageModel, steering: Steering, prompts: PromptsLike) -> Change:
    """A steering of some prompts as a `Change`, for `interp.intervene`, `ablate` and `generate`.

    Raises:
        InterpError: see `Steering.require`; during a run, a text that does not begin with the
            prompt given at its place, or more texts than prompts.
    """
    return _counted(model, steering, prompts)[0]


def _counted(
    model: LanguageModel, steering: Steering, prompts: PromptsLike
) -> tuple[Change, SteeringTally]:
    """A steering of some prompts as a `Change`, and the tally in which it counts its changes."""
    given = plain_prompts(model, prompts)
    steering.require(model, given)
    lengths = torch.tensor([len(row) for row in given.rows])
    tally = SteeringTally(name=steering.name, lengths=lengths)

    def value(at: Address, old: Tensor, tokens: Tokens) -> Tensor:
        return _changed(steering, tally, at, old, tokens.prompts.cpu(), tokens.positions.cpu())

    return _each_site(steering.name, value, steering.edits, given.rows), tally


def _reading(kept: Mapping[Address, Tensor], lengths: Tensor) -> Change:
    """Changes nothing; copies the states at the last token of every prompt into `kept`."""

    def value(at: Address, old: Tensor, tokens: Tokens) -> Tensor:
        prompts = tokens.prompts.cpu()
        last = tokens.positions.cpu() == lengths[prompts] - 1
        kept[at][prompts[last]] = old[last.to(old.device)].cpu()
        return old

    return _each_site("read", value, kept)


def _each_site(
    name: str,
    value: Callable[[Address, Tensor, Tokens], Tensor],
    sites: Iterable[Address],
    made_for: tuple[tuple[int, ...], ...] | None = None,
) -> Change:
    edits = (
        Edit(name=name, layer=layer, site=site, value=partial(value, (layer, site)),
             made_for=made_for)
        for layer, site in sites
    )  # fmt: skip
    return Change(name=name, edits=tuple(edits))


@reads_arguments
def run_steered(
    model: LanguageModel,
    prompts: PromptsLike,
    steering: Steering | None = None,
    *,
    layers: Sequence[int] = (),
    site: str = "resid_post",
) -> SteeredRun:
    """The next token of every prompt under a steering, by the fast engine if the model has one.

    Args:
        model: any model.
        prompts: prompts of the steering's chat format.
        steering: what is changed; None for the plain model.
        layers: the layers whose states at the last token are returned.
        site: the site of these states, as wide as the residual stream: resid_pre, resid_mid,
            resid_post, attn_out or mlp_out.

    Raises:
        InterpError: see `Steering.require`; another site, or inside `intervene`.
    """
    model.refuse_changed("steering", "steer(), which adds to them, and run_with_cache()")
    model.require_site(site)
    given = plain_prompts(model, prompts)
    addresses = sites_of(model, layers, [site]) if len(layers) else []
    if model.decoder is None:
        with steer(model, steering or _nothing(model, given), given) as tally:
            if not addresses:
                logits = model.last_logits(given.rows).cpu()
                return SteeredRun(logits=logits, states=None, tally=tally)
            seen = run_with_cache(model, given.rows, sites=[site], layers=layers, positions="last")
        states = torch.stack([seen[at] for at in addresses], 1)
        return SteeredRun(logits=seen.logits, states=states, tally=tally)
    tally, extend = _steered(model, given, steering)
    kept = {at: torch.zeros(len(given), model.d_model, dtype=model.dtype) for at in addresses}
    reading = _reading(kept, tally.lengths)
    runner, decoder = Runner(model.decoder), model.decoder
    logits = torch.zeros(len(given), decoder.d_vocab, dtype=model.dtype)
    order = tally.lengths.argsort(stable=True)
    with torch.no_grad():
        for block in cut(order.numpy(), tally.lengths[order].numpy(), TOGETHER):
            tokens, counts = padded_tokens([given.rows[i] for i in block], runner.device)
            stream = Stream.empty(runner, *tokens.shape)
            names = torch.from_numpy(block).to(runner.device)
            last = extend(stream, tokens, counts, names, reading)
            logits[block] = decoder.logits(decoder.ln_final(last)).cpu()
    states = torch.stack(list(kept.values()), 1) if kept else None
    return SteeredRun(logits=logits, states=states, tally=tally)


@reads_arguments
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
    """Greedy texts, steered at every token of the steering's phase; keys and values are cached.

    There is one run, unlike in `interp.runs.generation.generate`, which keeps a plain run beside
    the changed one. With None as steering it is the plain text of the same decoding.

    Raises:
        InterpError: no fast engine, see `Steering.require`, or more tokens than positions.
    """
    model.require_decoder("generating")
    model.refuse_changed("generating", "steer() and generate(), which see them")
    given = plain_prompts(model, prompts)
    tally, extend = _steered(model, given, steering)
    stop = stops_of(stop)
    [made] = in_batches(
        lambda: ChangedText(model, extend, stop),
        given.rows,
        max_new_tokens=max_new_tokens,
        rows=rows,
        progress=progress,
    )
    tally.until({i: _fed(one, stop) for i, one in enumerate(made)})
    return [replace(one, fired=()) for one in made], tally


def _nothing(model: LanguageModel, prompts: ChatPrompts) -> Steering:
    return Steering(name="plain", edits={}, format=prompts.format, model_hash=model.hash)


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


def _steered(
    model: LanguageModel, prompts: ChatPrompts, steering: Steering | None
) -> tuple[SteeringTally, Callable[..., Tensor]]:
    """The tally of a steering in the fast engine, and its `interp.runs.text_runs.extended`.

    What all rows begin with, such as a template's system prompt, is run once.
    """
    used = steering or _nothing(model, prompts)
    change, tally = _counted(model, used, prompts)

    def extend(
        stream: Stream, tokens: Tensor, counts: Tensor, names: Tensor, also: Change | None = None
    ) -> Tensor:
        every = change if also is None else change + also
        shared = shared_tokens(used, stream, tokens, counts)
        if shared:
            one = Stream.empty(stream.runner, 1, shared)
            extended(one, tokens[:1, :shared], counts[:1] * 0 + shared, names[:1], every)
            for mine, common in zip(
                stream.keys + stream.values, one.keys + one.values, strict=True
            ):
                mine[:, :, :shared] = common
            stream.lengths += shared
            tally.repeat(names[:1], names[1:])
        return extended(stream, tokens[:, shared:], counts - shared, names, every)

    return tally, extend


def shared_tokens(steering: Steering, stream: Stream, tokens: Tensor, counts: Tensor) -> int:
    """The number of first tokens that all rows share and that are changed alike in all of them."""
    own = [e for e in steering.edits.values() if e.shift is not None and len(e.shift) > 1]
    if bool(stream.lengths.any()) or len(tokens) < 2 or own or steering.gate is not None:
        return 0
    most = int(counts.min()) - 1
    if steering.positions is not None:
        # Positions counted from the end are different tokens in rows of different length.
        most = min(most, int(counts.min()) + min(steering.positions))
    alike = (tokens[:, :most] == tokens[:1, :most]).all(0)
    return int(alike.long().cumprod(0).sum())


def _fed(made: Generation, stop: Sequence[str]) -> int:
    """How many tokens of a text were run: all but the last, unless an end token followed it."""
    ended = made.stopped and not any(mark in made.text for mark in stop)
    return len(made.prompt) + len(made.tokens) - (0 if ended else 1)
