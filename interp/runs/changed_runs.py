"""Changed runs in the fast engine: only what can differ from the stored plain runs is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.positions import TokenizedPrompt
from interp.engine.forward import Baseline, Runner, SiteEdit
from interp.engine.layout import Layout
from interp.engine.restart import Variants, restart
from interp.models.language_model import Address
from interp.runs.change import (
    Change,
    Edit,
    Tokens,
    Where,
    changed_positions,
    changes_in,
    in_order,
)
from interp.runs.stored_runs import StoredRuns


@dataclass(frozen=True, kw_only=True)
class ChangedRuns:
    """Stored runs with a change in force; sites of the last token can be read in them.

    `where`: the last k tokens are changed, or "all", for which the runs must be stored whole.
    """

    runs: StoredRuns
    change: Change
    where: Where = "all"
    last: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        changes_in(self.runs.model, self.change, "changing")
        self.change.require_engine("changing")
        self.runs.require(self.runs.prompts, self.where, "ablating")
        self.change.require(self.runs.prompts, self.where)

    def require(self, prompts: Sequence[Sequence[int]], last: Where, asked: str) -> None:
        """Refuse, by an `InterpError`, other prompts, or more tokens than the last."""
        self.runs.require(prompts, last, asked)
        if last != 1:
            raise InterpError(f"{asked} the last {last} tokens", "changed runs", "read the last")

    def read(self, addresses: Sequence[Address]) -> dict[Address, Tensor]:
        """Sites at the last token, (prompts, 1, ...).

        Raises:
            InterpError: a pattern, which is not computed here.
        """
        if any(site == "pattern" for _, site in addresses):
            raise InterpError("patterns of changed runs", "they are not stored", "use intervene()")
        first = self.change.first_layer
        early = [at for at in addresses if at[0] < first]
        plain = self.runs.read(early, 1) if early else {}
        _, seen = self._run([at for at in addresses if at[0] >= first])
        return {at: (plain[at] if at in plain else seen[at][:, None])[:, -1:] for at in addresses}

    def logits(self) -> Tensor:
        """Logits of every prompt's next token, (prompts, d_vocab)."""
        hidden, _ = self._run(())
        with torch.no_grad():
            return self.runs.runner.decoder.logits(hidden)

    def _run(self, addresses: Sequence[Address]) -> tuple[Tensor, dict[Address, Tensor]]:
        hidden: list[Tensor] = []
        parts: dict[Address, list[Tensor]] = {address: [] for address in addresses}
        prompts = [
            TokenizedPrompt(text=None, tokens=tokens, strings=(), spans=None)
            for tokens in self.runs.prompts
        ]
        changes = [self.change.last(self.where).resolved(prompts, None)]
        with torch.no_grad():
            for block, base in self.runs.blocks:
                seen = {address: torch.empty(0) for address in addresses}
                hidden.append(changed_states(self.runs.runner, base, changes, block, seen=seen)[0])
                for address, value in seen.items():
                    parts[address].append(value)
        found = {address: self.runs.in_order(values) for address, values in parts.items()}
        return self.runs.in_order(hidden), found


def changed_states(
    runner: Runner,
    base: Baseline,
    changes: Sequence[Change],
    block: np.ndarray,
    *,
    seen: dict[Address, Tensor] | None = None,
) -> Tensor:
    """Normalised final states under every change: (changes, prompts of the block, d_model).

    Of prompts with branches (`interp.core.branches`) at their tails, one prompt after the other.

    Args:
        runner: the engine of a model.
        base: the plain runs of the prompts.
        changes: run through the layers together; their position names are resolved.
        block: the numbers of the prompts, by which a change finds its values.
        seen: its keys are (layer, site); the sites at the last token, (changes * prompts, ...), are
            stored in it. No such layer may come before the first layer of a change.
    """
    n = len(block)
    edits: dict[Address, _SiteEdits] = {}
    for number, change in enumerate(changes):
        for edit in change.edits:
            here = edits.setdefault(edit.address, _SiteEdits(site=edit.site))
            rows, positions = changed_tokens(edit, base.lengths, block)
            tokens = Tokens(
                prompts=torch.from_numpy(block[rows]).to(runner.device),
                positions=torch.from_numpy(positions).to(runner.device),
                back=torch.from_numpy(base.lengths[rows] - 1 - positions).to(runner.device),
            )
            here.edits.append((edit, rows + number * n, positions, tokens))
    by_layer: dict[int, list[SiteEdit]] = {}
    for layer, site in in_order(edits):
        by_layer.setdefault(layer, []).append(edits[layer, site])
    variants = Variants(
        prompt=np.tile(np.arange(n), len(changes)),
        start=np.concatenate([first_tokens(change, base.lengths, block) for change in changes]),
        layer=np.repeat([change.first_layer for change in changes], n),
        ready=np.zeros(n * len(changes), dtype=bool),
    )
    hidden = restart(runner, base, variants, edits=by_layer, seen=seen)
    return hidden.unflatten(0, (len(changes), -1))


def first_tokens(change: Change, lengths: np.ndarray, block: np.ndarray) -> np.ndarray:
    """(prompts,) the first position that a change touches in prompts of these lengths."""
    return np.array(
        [
            min(changed_positions(edit, prompt, length).start for edit in change.edits)
            for prompt, length in zip(block.tolist(), lengths.tolist(), strict=True)
        ]
    )


def changed_tokens(
    edit: Edit, lengths: np.ndarray, block: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) row in the block and position of every token that an edit changes."""
    spans = [
        changed_positions(edit, prompt, length)
        for prompt, length in zip(block.tolist(), lengths.tolist(), strict=True)
    ]
    rows = np.repeat(np.arange(len(block)), [len(span) for span in spans])
    return rows, np.concatenate([np.arange(span.start, span.stop) for span in spans])


@dataclass(frozen=True, kw_only=True)
class _SiteEdits:
    """The edits that several changes make at one site, each in its own rows."""

    site: str
    edits: list[tuple[Edit, np.ndarray, np.ndarray, Tokens]] = field(default_factory=list)

    def apply(self, tensor: Tensor, layout: Layout) -> Tensor:
        edited = tensor.clone()
        for edit, rows, positions, tokens in self.edits:
            at = layout.flat(rows, positions).to(tensor.device)
            edited[at], _, _ = edit.applied(edited[at], tokens)
        return edited
