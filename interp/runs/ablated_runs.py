"""Plain runs with sets of components changed in them: only what can differ is run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.engine.decode import CHANGEABLE
from interp.engine.forward import Baseline, Runner, SiteEdit
from interp.engine.layout import Layout
from interp.engine.restart import Variants, restart
from interp.models.language_model import Address
from interp.runs.stored_runs import StoredRuns

if TYPE_CHECKING:
    from interp.runs.ablation import Ablation, Where


@dataclass(frozen=True, kw_only=True)
class AblatedRuns:
    """Kept runs with an ablation in force; sites of the last token can be read in them.

    For `where="all"` the runs must have been kept whole.
    """

    runs: StoredRuns
    ablation: Ablation
    where: Where = "all"
    last: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        self.runs.require(self.runs.prompts, self.where, "ablating")
        self.ablation.require(len(self.runs.prompts), self.where)

    def require(self, prompts: Sequence[Sequence[int]], last: Where, asked: str) -> None:
        """Refuse other prompts, or more than the last token.

        Raises:
            InterpError: either.
        """
        self.runs.require(prompts, last, asked)
        if last != 1:
            raise InterpError(f"{asked} the last {last} tokens", "ablated runs", "read the last")

    def read(self, addresses: Sequence[Address]) -> dict[Address, Tensor]:
        """Sites at the last token, (prompts, 1, ...).

        Raises:
            InterpError: a pattern, which is not computed here.
        """
        if any(site == "pattern" for _, site in addresses):
            raise InterpError("patterns of ablated runs", "they are not kept", "use intervene()")
        first = self.ablation.first_layer
        early = [at for at in addresses if at[0] < first]
        plain = self.runs.read(early) if early else {}
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
        with torch.no_grad():
            for block, base in self.runs.blocks:
                seen = {address: torch.empty(0) for address in addresses}
                hidden.append(
                    changed_states(
                        self.runs.runner, base, [self.ablation], block, self.where, seen=seen
                    )[0]
                )
                for address, value in seen.items():
                    parts[address].append(value)
        found = {address: self.runs.in_order(values) for address, values in parts.items()}
        return self.runs.in_order(hidden), found


def starts(lengths: np.ndarray, where: Where) -> np.ndarray:
    """The first position of every prompt that `where` changes."""
    return np.zeros_like(lengths) if where == "all" else lengths - int(where)


def changed_states(
    runner: Runner,
    base: Baseline,
    ablations: Sequence[Ablation],
    block: np.ndarray,
    where: Where,
    *,
    seen: dict[Address, Tensor] | None = None,
) -> Tensor:
    """Normalised final states under every ablation: (ablations, prompts of the block, d_model).

    Args:
        runner: the engine of a model.
        base: the plain runs of the prompts.
        ablations: go through the layers together.
        block: the prompts' numbers, by which an ablation knows its values.
        where: the last k tokens, or "all".
        seen: filled with the sites that are its keys at the last token, (ablations * prompts, ...);
            their layers must not precede any ablation.
    """
    lengths, n = base.lengths, len(block)
    start = starts(lengths, where)
    rows = np.repeat(np.arange(n), lengths - start)
    positions = np.concatenate([np.arange(a, b) for a, b in zip(start, lengths, strict=True)])
    back = torch.from_numpy(lengths[rows] - 1 - positions).to(runner.device)
    prompts = torch.from_numpy(block[rows]).to(runner.device)
    edits: dict[Address, _SetEdit] = {}
    for number, ablation in enumerate(ablations):
        for address in ablation.parts:
            edit = edits.setdefault(
                address,
                _SetEdit(
                    address=address, rows=rows, positions=positions, prompts=prompts, back=back
                ),
            )
            edit.ablations[number * n] = ablation
    by_layer: dict[int, list[SiteEdit]] = {}
    for layer, site in sorted(edits, key=lambda a: (a[0], CHANGEABLE.index(a[1]))):
        by_layer.setdefault(layer, []).append(edits[layer, site])
    variants = Variants(
        prompt=np.tile(np.arange(n), len(ablations)),
        start=np.tile(start, len(ablations)),
        layer=np.repeat([ablation.first_layer for ablation in ablations], n),
        ready=np.zeros(n * len(ablations), dtype=bool),
    )
    hidden = restart(runner, base, variants, edits=by_layer, seen=seen)
    return hidden.unflatten(0, (len(ablations), n))


@dataclass(frozen=True, kw_only=True)
class _SetEdit:
    """What several ablations do to one site, each in rows of its own.

    `ablations` are keyed by the number of their first row; a new value may depend on the old one.
    """

    address: Address
    rows: np.ndarray
    positions: np.ndarray
    prompts: Tensor
    back: Tensor
    ablations: dict[int, Ablation] = field(default_factory=dict)

    @property
    def site(self) -> str:
        return self.address[1]

    def apply(self, tensor: Tensor, layout: Layout) -> Tensor:
        edited = tensor.clone()
        for first, ablation in self.ablations.items():
            at = layout.flat(self.rows + first, self.positions).to(tensor.device)
            edited[at] = ablation.new(self.address, tensor[at], self.prompts, self.back)
        return edited
