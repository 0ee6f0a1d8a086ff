"""Plain runs of many prompts, stored so that many reads and changes can use the same run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.core.arguments import rows_of
from interp.core.components import EXPERT_SITES, SINGLE, SITES
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Brief
from interp.engine.forward import PREFIX_SITES, Baseline, Replacement, Runner
from interp.engine.layout import Layout, ranges
from interp.engine.memory import budget_bytes
from interp.engine.readout import cut
from interp.engine.restart import Variants, baseline, final_hidden, restart
from interp.models.language_model import Address, LanguageModel

BLOCK = 8192
"""Tokens run at once."""


@dataclass(frozen=True, kw_only=True)
class StoredRuns(Brief):
    """Plain runs in which the last `last` tokens of the prompts are read, or changed.

    They hold the keys and values of every token, and the residual stream of the last tokens (of all
    tokens in whole runs). A read computes a block again for these tokens only. `made_of` is the
    hash of the weights: with others, because of a weight delta, the runs are refused.
    """

    model: LanguageModel
    runner: Runner
    prompts: tuple[tuple[int, ...], ...]
    last: int
    blocks: tuple[tuple[np.ndarray, Baseline], ...]
    made_of: str

    def require(
        self, prompts: Sequence[Sequence[int]], last: int | Literal["all"], asked: str
    ) -> None:
        """Refuse, by an `InterpError`, other prompts or weights, or more tokens than were kept."""
        self.model.require_hash(self.made_of, "kept runs")
        whole = all(run.place is None for _, run in self.blocks)
        enough = whole if last == "all" else last <= self.last
        if self.prompts != tuple(map(tuple, prompts)) or not enough:
            wanted = "all" if last == "all" else f"the last {last}"
            raise InterpError(
                f"{asked} {wanted} tokens of {len(prompts)} prompts in kept runs",
                f"runs of the last {self.last} tokens of {len(self.prompts)} prompts",
                "keep the runs of the same prompts, as many tokens, or leave them out",
            )

    def select(self, chosen: Sequence[int]) -> StoredRuns:
        """The runs of some of the prompts, in that order; nothing is run or copied."""
        numbers = np.full(len(self.prompts), -1)
        numbers[list(chosen)] = np.arange(len(chosen))
        blocks = []
        for block, base in self.blocks:
            inside = numbers[block] >= 0
            if inside.any():
                blocks.append((numbers[block[inside]], base.of_prompts(inside)))
        prompts = tuple(self.prompts[i] for i in chosen)
        return replace(self, prompts=prompts, blocks=tuple(blocks))

    def read(self, addresses: Sequence[Address], last: int | None = None) -> dict[Address, Tensor]:
        """Sites at the last tokens, (prompts, last, ...); patterns padded to the longest prompt.

        last: how many tokens, by default all that were kept.
        """
        self.model.require_hash(self.made_of, "kept runs")
        last = self.last if last is None else last
        longest = max(map(len, self.prompts))
        found: dict[Address, list[Tensor]] = {address: [] for address in addresses}
        with torch.no_grad():
            for _, base in self.blocks:
                layout = Layout.of_rows(base.lengths, base.offset, base.lengths - last)
                there, back = layout.base, torch.argsort(layout.base)
                for layer in dict.fromkeys(layer for layer, _ in addresses):
                    capture: dict[str, Tensor] = {}
                    self.runner.block(
                        layer,
                        base.at(layer, "resid_pre", there.to(self.runner.device)),
                        layout,
                        base=base,
                        capture=capture,
                        patterns=(layer, "pattern") in found,
                        experts=any((layer, site) in found for site in EXPERT_SITES),
                    )
                    for site in [site for at, site in found if at == layer]:
                        value = capture[site][back.to(self.runner.device)]
                        if site == "pattern":
                            value = pad(value, (0, longest - value.shape[-1]))
                        found[layer, site].append(value.unflatten(0, (-1, last)))
        return {address: self.in_order(parts) for address, parts in found.items()}

    def logits(self) -> Tensor:
        """Logits of every prompt's next token, (prompts, d_vocab)."""
        self.model.require_hash(self.made_of, "kept runs")
        with torch.no_grad():
            hidden = [final_hidden(self.runner, base) for _, base in self.blocks]
            return self.runner.decoder.logits(self.in_order(hidden))

    def edited_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the next token after edited prompts, (prompts, d_vocab).

        Prompt i differs from the kept prompt i in some tokens and is as long. It is run from the
        first token that differs on, against the kept keys and values of the tokens before.

        Raises:
            InterpError: another number of prompts, one that is longer or shorter, or other weights.
        """
        self.model.require_hash(self.made_of, "kept runs")
        if list(map(len, prompts)) != list(map(len, self.prompts)):
            raise InterpError(
                f"runs of {len(prompts)} edited prompts",
                f"other lengths than those of the {len(self.prompts)} kept prompts",
                "give as many prompts, each as long as the kept one, or run them whole",
            )
        decoder, hidden = self.runner.decoder, []
        with torch.no_grad():
            for block, base in self.blocks:
                texts = [np.array(prompts[i]) for i in block]
                start = np.array([_first_edit(prompts[i], self.prompts[i]) for i in block])
                positions = ranges(start, base.lengths - start)
                tokens = np.concatenate([x[at:] for x, at in zip(texts, start, strict=True)])
                # Every embedding is replaced, because those of the kept run may not be kept.
                new = Replacement(
                    site="resid_pre",
                    ids=np.repeat(np.arange(len(block)), base.lengths - start),
                    positions=positions,
                    values=decoder.embed(*self._on_device(tokens, positions)),
                )
                rows = Variants(
                    prompt=np.arange(len(block)),
                    start=start,
                    layer=np.zeros_like(start),
                    ready=np.zeros(len(block), dtype=bool),
                )
                hidden.append(restart(self.runner, base, rows, edits={0: [new]}))
            return decoder.logits(self.in_order(hidden))

    def alone(self, sites: Iterable[str]) -> list[Baseline]:
        """The run of every prompt alone, with some more sites of all layers at its last tokens."""
        layers, last = range(self.model.n_layers), self.last
        held = self.read([(layer, site) for site in sites for layer in layers])
        found: dict[int, Baseline] = {}
        for block, base in self.blocks:
            for row, number in enumerate(block.tolist()):
                begin, n = int(base.offset[row]), int(base.lengths[row])
                ends = torch.arange(begin + n - last, begin + n)
                own = {at: value[number] for at, value in held.items()}
                for layer, site in base.sites:
                    if site in PREFIX_SITES:
                        own[layer, site] = base.sites[layer, site][begin : begin + n]
                    else:
                        own[layer, site] = base.at(layer, site, ends.to(self.runner.device))
                place = torch.cat([torch.full((n - last,), -1), torch.arange(last)])
                found[number] = Baseline(
                    lengths=np.array([n]),
                    offset=np.array([0]),
                    place=place.to(self.runner.device),
                    sites=own,
                )
        return [found[number] for number in range(len(self.prompts))]

    def _on_device(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.runner.device) for array in arrays]

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of the blocks, which are sorted by length, in the order of the prompts."""
        order = torch.from_numpy(np.argsort(np.concatenate([block for block, _ in self.blocks])))
        return torch.cat(list(parts))[order.to(parts[0].device)]


def _first_edit(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two texts of one length differ, or the last position."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(one) - 1)


def keep_runs(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    *,
    last: int,
    whole: bool = False,
    budget_gb: float = 4.0,
) -> StoredRuns | None:
    """The plain runs of some prompts, for `runs=...`; None if they exceed the budget.

    Runs stored as `whole` can be changed at all tokens. In others, the `last` tokens of each prompt
    can be read and changed.

    Raises:
        InterpError: no fast engine, a prompt shorter than `last`, or inside `intervene`.
    """
    model.refuse_changed("keeping plain runs", "run_with_cache()")
    prompts = rows_of(model, prompts)
    if min(map(len, prompts), default=0) < last:
        raise InterpError(f"keeping the last {last} tokens", "a shorter prompt", "lower last")
    decoder = model.require_decoder("keeping plain runs")
    width = 2 * model.n_kv_heads * model.d_head + (model.d_model if whole else 0)
    per_token = width * model.n_layers * torch.finfo(model.dtype).bits / 8
    if sum(map(len, prompts)) * per_token > budget_bytes(budget_gb):
        return None
    runner = Runner(decoder)
    with torch.no_grad():
        blocks = tuple(
            (block, run if whole else run.only_ends(last))
            for block, run in plain_runs(runner, prompts)
        )
    prompts = tuple(prompts)
    return StoredRuns(
        model=model, runner=runner, prompts=prompts, last=last, blocks=blocks, made_of=model.hash
    )


def plain_runs(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    *,
    sites: frozenset[str] = frozenset(),
    tokens: int = BLOCK,
) -> Iterator[tuple[np.ndarray, Baseline]]:
    """(prompt numbers, their run) in blocks of about that many tokens, similar lengths together."""
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(lengths, kind="stable")
    for block in cut(order, lengths[order], tokens):
        yield block, baseline(runner, [prompts[i] for i in block], sites)


BUDGET = 2e9
"""Bytes that captured sites of the tokens run at once may take."""


def site_values(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    addresses: Sequence[Address],
    *,
    last: int = 1,
    runs: StoredRuns | None = None,
) -> dict[Address, Tensor]:
    """Sites at the last k tokens of every prompt: (prompts, k, ...). For `make_ablation`.

    Their mean over the first axis (kept as an axis of size 1) gives mean ablation, a permutation of
    that axis gives resampling, and the values of paired prompts give a patch. With `runs`, they are
    read in these.

    Raises:
        InterpError: a prompt shorter than `last`, no fast engine, or runs that do not fit.
    """
    prompts = rows_of(model, prompts)
    if runs is not None:
        runs.require(prompts, last, "reading")
        return runs.read(addresses, last)
    model.refuse_changed("reading site values", "run_with_cache()")
    runner = Runner(model.require_decoder("reading site values"))
    if min(map(len, prompts)) < last:
        raise InterpError(f"the last {last} tokens", "a shorter prompt", "lower last")
    found: dict[Address, list[Tensor]] = {address: [] for address in addresses}
    sites = frozenset(site for _, site in addresses) - {"resid_post"}
    kept = sum(site_width(model, site, True) for site in sites | {"resid_pre"}) * model.n_layers
    tokens = max(1, min(BLOCK, int(BUDGET / (4 * kept))))
    blocks = []
    with torch.no_grad():
        for block, base in plain_runs(runner, prompts, sites=sites, tokens=tokens):
            blocks.append(block)
            ends = torch.from_numpy(base.offset + base.lengths)
            at = ends[:, None] - torch.arange(last, 0, -1)
            for address in addresses:
                found[address].append(base.site(*address)[at.to(runner.device)])
    # Blocks are sorted by length: back to the order of the prompts.
    back = torch.from_numpy(np.argsort(np.concatenate(blocks))).to(runner.device)
    return {address: torch.cat(pieces)[back] for address, pieces in found.items()}


def site_width(model: LanguageModel, site: str, whole: bool) -> int:
    """Numbers per token at a site, or in one of its components."""
    width = {"z": model.d_head}.get(site, 1 if site in SINGLE else model.d_model)
    axis = SITES[site]
    return width if axis is None or not whole else width * model.size(axis)
