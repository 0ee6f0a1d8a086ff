"""Sets of components ablated together: greedy orders, and the smallest sets that are enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments, rows_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.schema import Brief
from interp.core.statistics import Estimate, mean_estimate, share_estimate
from interp.models.language_model import Address, LanguageModel
from interp.plots.tables import Tabled
from interp.runs.change import Where
from interp.runs.kinds import AblationKind, make_ablation, random_like
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import StoredRuns, keep_runs

ENOUGH = 0.95
"""The share of prompts that must be disabled."""


@dataclass(frozen=True, kw_only=True)
class AblatedSets(Brief):
    """The next token of some prompts with sets of components ablated; each set is run once.

    A call with sets of labels returns two (sets, prompts) arrays: disabled, whether the most likely
    token is `tokens[1]`, and log P(tokens[0]) - log P(tokens[1]).

    Attributes:
        model: a model with a fast engine.
        prompts: texts or token ids of prompts that the plain model continues with `tokens[0]`.
        tokens: the token of the behaviour, and that of its failure, as text or ids.
        where: "all" tokens are changed, or the last k.
        kind: "zero", or one of `interp.runs.kinds.make_ablation` with `values`.
        values: as `interp.runs.stored_runs.site_values` gives them.
        runs: plain runs of the prompts (`interp.runs.stored_runs.keep_runs`); made once without.

    Raises:
        InterpError: no prompts, or one token twice; when called, what `ablate` refuses.
    """

    model: LanguageModel
    prompts: Sequence[Prompt]
    tokens: tuple[str | int, str | int]
    where: Where = "all"
    kind: AblationKind = "zero"
    values: Mapping[Address, Tensor] | None = None
    runs: StoredRuns | None = None
    _made_of: str = field(default="", init=False)
    _known: dict[frozenset[str], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_made_of", self.model.hash)
        object.__setattr__(self, "prompts", rows_of(self.model, self.prompts))
        ids = tuple(self.model.single_token(token) for token in self.tokens)
        object.__setattr__(self, "tokens", ids)
        if not self.prompts or len(set(self.tokens)) != 2:
            raise InterpError(
                f"sets ablated on {len(self.prompts)} prompts, tokens {self.tokens}",
                "no prompts, or one token twice",
                "give prompts, the token of the behaviour and that of its failure",
            )

    @cached_property
    def _plain(self) -> StoredRuns | None:
        if self.runs is not None or self.where == "all":
            return self.runs
        return keep_runs(self.model, self.prompts, last=self.where)

    def __call__(self, sets: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Whether disabled, and the log-odds: (sets, prompts) each."""
        self.model.require_hash(self._made_of, "ablated sets")
        keys = [frozenset(listed(labels)) for labels in listed(sets)]
        new = list({key: None for key in keys if key not in self._known})
        if new:
            made = [
                make_ablation(self.model, sorted(key), self.kind, values=self.values) for key in new
            ]
            seen = ablate(
                self.model,
                self.prompts,
                made,
                tokens=self.tokens,
                where=self.where,
                runs=self._plain,
            )
            found = zip(seen.top[1:] == self.tokens[1], seen.log_odds[1:], strict=True)
            self._known.update(zip(new, found, strict=True))
        disabled, odds = zip(*(self._known[key] for key in keys), strict=True)
        return np.stack(disabled), np.stack(odds)


@reads_arguments
def greedy_order(
    sets: AblatedSets, candidates: Sequence[str], most: int, *, drawn: np.ndarray | None = None
) -> list[str]:
    """Components added one by one, each the one that lowers the mean log-odds most.

    If two components can replace each other, ablating one of them has no effect. A greedy order may
    then add other components first, and `smallest_sets` finds a smaller set.

    Args:
        sets: what is measured.
        candidates: labels to choose among.
        most: where to stop.
        drawn: numbers of the prompts averaged over, such as a bootstrap's; all by default.

    Raises:
        InterpError: no candidates, a repeated one, or `most` below 1.
    """
    left = listed(candidates)
    if not left or len(set(left)) < len(left) or most < 1:
        raise InterpError(
            f"an order of {most} of {left}",
            "no candidates, a repeated one, or `most` below 1",
            "give each candidate once, and `most` of at least 1",
        )
    order: list[str] = []
    while left and len(order) < most:
        _, odds = sets([[*order, label] for label in left])
        odds = odds if drawn is None else odds[:, drawn]
        order.append(left.pop(int(np.argmin(odds.mean(1)))))
    return order


@dataclass(frozen=True, kw_only=True)
class AblationCurve(Tabled):
    """The behaviour with the first 1, 2, ... components of an order ablated together.

    order: (sizes,) the component that each size adds. disabled: share of prompts whose most likely
    token is that of the failure, with its Wilson interval. log_odds: mean log-odds of the
    behaviour. null: by size, the share disabled by each random set of this size.
    """

    order: tuple[str, ...]
    disabled: tuple[Estimate, ...]
    log_odds: tuple[Estimate, ...]
    null: Mapping[int, np.ndarray]

    @property
    def smallest(self) -> int | None:
        """The least size that disables the behaviour in at least 95 % of prompts."""
        return smallest_size([share.mean for share in self.disabled])

    def to_dataframe(self) -> Any:
        """One row per size."""
        import pandas as pd

        rows = []
        for size, (added, share, odds) in enumerate(
            zip(self.order, self.disabled, self.log_odds, strict=True), 1
        ):
            drawn = self.null.get(size)
            rows.append(
                {
                    "size": size, "added": added, "disabled": share.mean, "low": share.low,
                    "high": share.high, "log_odds": odds.mean, "n": share.n,
                    "random": None if drawn is None else float(drawn.mean()),
                    "draws": 0 if drawn is None else len(drawn),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)


@reads_arguments
def ablation_curve(
    sets: AblatedSets,
    order: Sequence[str],
    *,
    draws: int = 0,
    sizes: Collection[int] | None = None,
    seed: int = 0,
) -> AblationCurve:
    """Incremental ablation: the first 1, 2, ... components of an order together.

        disabled(k) = share of prompts whose most likely token is tokens[1] with order[:k] ablated

    Args:
        sets: what is measured.
        order: labels, the first ablated first.
        draws: random sets matched in kind, layer and count (`interp.runs.kinds.random_like`).
        sizes: the sizes at which they are drawn; all by default.
        seed: seed of the draw.

    Raises:
        InterpError: an empty order, one component twice, or a size beyond it.

    Unlike the released code, it gives every size an interval, and can compare with random sets.
    Source: Lee et al. 2025, arXiv 2504.14379; ajyl/verify_circuit.
    """
    labels = listed(order)
    every = range(1, len(labels) + 1)
    wanted = set(every if sizes is None else sizes)
    if not labels or len(set(labels)) < len(labels) or not wanted <= set(every):
        raise InterpError(
            f"the curve of {labels} with random sets of {sorted(wanted)}",
            "nothing in it, one component twice, or a size beyond it",
            "give each component once, and sizes from 1 to their number",
        )
    disabled, odds = sets([labels[:size] for size in every])
    null = {}
    for size in sorted(wanted) if draws else ():
        drawn = random_like(sets.model, labels[:size], draws, seed=seed)
        null[size] = sets(drawn)[0].mean(1)
    return AblationCurve(
        order=tuple(labels),
        disabled=tuple(share_estimate(int(row.sum()), len(row)) for row in disabled),
        log_odds=tuple(mean_estimate(torch.from_numpy(row)) for row in odds),
        null=null,
    )


def smallest_size(shares: Sequence[float], enough: float = ENOUGH) -> int | None:
    """The least size at which at least this share is disabled; sizes from 1, None for none."""
    return next((size for size, share in enumerate(shares, 1) if share >= enough), None)


@reads_arguments
def smallest_sets(
    sets: AblatedSets,
    candidates: Sequence[str],
    *,
    most: int = 3,
    enough: float = ENOUGH,
    limit: int = 20_000,
    drawn: np.ndarray | None = None,
) -> list[tuple[str, ...]]:
    """All sets of the least size, among the candidates, that disable the behaviour.

    All sets of 1, 2, ... `most` candidates are tried, until a set of this size disables the
    behaviour in the share `enough` of prompts. The strongest set comes first.

    Args:
        sets: what is measured.
        candidates: labels to choose among.
        most: the largest size tried.
        enough: the share of prompts that must be disabled.
        limit: the largest number of sets to try.
        drawn: numbers of the prompts averaged over, such as a bootstrap's; all by default.

    Returns:
        The sets; an empty list if no set of up to `most` is enough.

    Raises:
        InterpError: more than `limit` sets to try, or candidates that are none or named twice.
    """
    labels = listed(candidates)
    tries = sum(comb(len(labels), size) for size in range(1, most + 1))
    if not 1 <= tries <= limit or len(set(labels)) < len(labels):
        raise InterpError(
            f"the smallest set of up to {most} of {len(labels)} candidates",
            f"{tries} sets to try (from 1 to {limit} are allowed), or one candidate twice",
            "give fewer candidates, each once, or raise limit",
        )
    for size in range(1, most + 1):
        tried = list(combinations(labels, size))
        if not tried:
            break
        disabled, odds = sets(tried)
        if drawn is not None:
            disabled, odds = disabled[:, drawn], odds[:, drawn]
        order = np.lexsort((odds.mean(1), -disabled.mean(1)))
        found = [tried[i] for i in order if disabled[i].mean() >= enough]
        if found:
            return found
    return []
