"""Singular directions of what a head or an MLP writes: scaled, removed, and their effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.components import Component, within
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.core.nulls import Null, null_of
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.statistics import Estimate, mean_estimate
from interp.heads.matrices import head_matrices, low_rank_svd
from interp.models.language_model import LanguageModel
from interp.models.loading import plain_view
from interp.models.unembedding import Unembedded, unembed
from interp.models.weight_delta import LowRank, WeightDelta
from interp.plots.tables import Tabled
from interp.runs.change import Change, Tokens
from interp.runs.changed_runs import ChangedRuns
from interp.runs.kinds import one_edit
from interp.runs.stored_runs import keep_runs


@dataclass(frozen=True, kw_only=True)
class SingularDirections(Tabled):
    """The singular value decomposition of the map through which a head or an MLP layer writes.

        M = sum over i of  s_i u_i w_i^T:   an input along u_i is written as s_i w_i

    M is V O of a head, (d_model, d_model), with the weight of the layer's norm inside V; or W_down
    of an MLP layer, (d_mlp, d_model). Biases are not included.

    Attributes:
        part: the label, such as L9H6 or L11.mlp_out.
        values: (rank,) singular values, from the largest.
        written: (rank, d_model) w_i, float64.
        tokens: of each direction, the tokens whose logits w_i raises and lowers most.
    """

    part: str
    values: np.ndarray
    written: Tensor = field(repr=False)
    tokens: tuple[Unembedded, ...] = field(repr=False)

    @property
    def shares(self) -> np.ndarray:
        """(rank,) share of each direction in the sum of squared singular values."""
        return self.values**2 / np.sum(self.values**2)

    def __repr__(self) -> str:
        top = ", ".join(f"{share:z.3f}" for share in self.shares[:5])
        return f"SingularDirections({self.part}, rank {len(self.values)}, largest shares {top})"

    def to_dataframe(self) -> Any:
        """One row per direction."""
        from pandas import DataFrame

        rows = zip(self.values, self.shares, self.tokens, strict=True)
        return DataFrame(
            [
                {"direction": i, "singular value": value, "share": share, "writes": str(tokens)}
                for i, (value, share, tokens) in enumerate(rows)
            ]
        )


@reads_arguments
@torch.no_grad()
def singular_directions(model: LanguageModel, part: str, *, k: int = 5) -> SingularDirections:
    """Decompose what a head (L9H6) or an MLP layer (L11.mlp_out) writes.

    Args:
        model: a model of a known architecture.
        part: a head or the output of an MLP.
        k: tokens of each sign.

    Raises:
        InterpError: another component, a norm behind it, or a mixture of experts.

    Source: Millidge and Black 2022; Sun et al. 2025, arXiv 2501.06252 (singular values as the
    numbers that are adapted).
    """
    found = _parsed(model, part)
    if found.index is None:
        block = model.require_decoder("singular directions").blocks[found.layer]
        down = block.neurons.down.weight.double().cpu()
        _, values, written = torch.linalg.svd(down, full_matrices=False)
    else:
        made = head_matrices(model, found.layer)
        factors = (factor[found.index].double().cpu() for factor in made.factors("OV"))
        _, values, written = low_rank_svd(*factors)
    return SingularDirections(
        part=part,
        values=values.numpy(),
        written=written,
        tokens=tuple(unembed(model, written, k=k, norm=True)),
    )


@reads_arguments
def scale_singular(
    model: LanguageModel, part: str, factors: Mapping[int, float]
) -> tuple[Change, WeightDelta]:
    """Multiply singular values of a part by factors (0 removes one), as a change and as weights.

        x' = x + sum over i of (factor_i - 1) (x . w_i) w_i,   x what the part writes, no biases

    Both give the same runs: the `Change` for `intervene`, sweeps and generation, the delta for
    `applied`, merges and files. Of a head only its rows of W_O change.

    Raises:
        InterpError: as in `singular_directions`, no such direction, or a factor that is not finite.
    """
    found = singular_directions(model, part, k=1)
    times = torch.tensor(list(factors.values()), dtype=torch.float64)
    if not factors or not bool(times.isfinite().all()):
        raise InterpError(f"scaling {dict(factors)} of {part}", "not finite, or none", "give some")
    numbers = within(list(factors), len(found.values), "singular direction", part)
    rows = found.written[numbers]
    named = ", ".join(f"{i} by {factors[i]:g}" for i in numbers)
    name = f"{part}: singular value {named}"
    return (
        _edited(model, part, rows.T @ ((times - 1)[:, None] * rows), name),
        _as_weights(model, part, rows, times - 1, name),
    )


@dataclass(frozen=True, kw_only=True)
class SingularEffects(Tabled):
    """What each singular direction of a part carries of a task's metric.

    Attributes:
        part: the part.
        task: the task's name.
        share: (directions,) share in the sum of squared singular values.
        effects: of each direction: mean of m[plain] - m[without it] over the clean prompts, in the
            metric's unit. Positive supports the behaviour.
        nulls: of each direction: its effect among those of random directions of what the part
            writes, of which as much is removed (the same Frobenius norm).
        whole: the effect of the whole part at 0 (its biases stay).
    """

    part: str
    task: str
    share: np.ndarray
    effects: tuple[Estimate, ...]
    nulls: tuple[Null, ...]
    whole: Estimate

    def __repr__(self) -> str:
        best = int(np.argmax([effect.mean for effect in self.effects]))
        return (
            f"SingularEffects({self.part} on {self.task}: the whole part {self.whole}; strongest "
            f"direction {best}, share {self.share[best]:z.3f}: {self.effects[best]}, "
            f"random {self.nulls[best].beside})"
        )

    def to_dataframe(self) -> Any:
        """One row per direction."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "direction": i,
                    "share": self.share[i],
                    "effect": effect.mean,
                    "low": effect.low,
                    "high": effect.high,
                    "random": null.mean,
                    "random, largest": null.high,
                }
                for i, (effect, null) in enumerate(zip(self.effects, self.nulls, strict=True))
            ]
        )


@reads_arguments
@torch.no_grad()
def singular_effects(
    model: LanguageModel,
    task: Task,
    part: str,
    *,
    n: int = 8,
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> SingularEffects:
    """Remove each of the n strongest singular directions of a part, and random ones beside it.

    The control of direction i is a random direction r in the space that the part writes to. It is
    removed as x - c (x . r) r with c such that the removed part of the map has the norm s_i: a
    direction counts if it does more than as much of anything else.

    Args:
        model: a model with a fast engine.
        task: its clean prompts are run.
        part: a head or the output of an MLP.
        n: how many directions.
        draws: random directions for each.
        seed: of the random directions.
        progress: called with (runs done, runs in total).

    Raises:
        InterpError: as in `singular_directions`.
    """
    found = singular_directions(model, part, k=1)
    (n,) = within([n - 1], len(found.values), "number of directions, less one,", part)
    n += 1
    encoded = task.encode(model, strings=True)
    runs = keep_runs(model, encoded.targets.rows(encoded.clean), last=1, whole=True)
    if runs is None:
        what = "the plain runs do not fit the budget of 4 GB"
        raise InterpError(f"singular effects of {part}", what, "give fewer prompts")
    generator = torch.Generator().manual_seed(seed)
    values, written = torch.from_numpy(found.values), found.written
    done, total = 0, n * (draws + 1) + 1

    def metric(rows: Tensor, times: Tensor) -> Tensor:
        """(n,) the metric when `times` of these directions are added to what the part writes."""
        nonlocal done
        change = _edited(model, part, rows.T @ (times[:, None] * rows), "removed")
        logits = ChangedRuns(runs=runs, change=change, where="all").logits()
        done += 1
        if progress is not None:
            progress(done, total)
        return task.metric(Logits(logits), encoded.targets).double().cpu()

    plain = task.metric(Logits(runs.logits()), encoded.targets).double().cpu()
    effects, nulls = [], []
    for i in range(n):
        gone = plain - metric(written[i : i + 1], torch.tensor([-1.0], dtype=torch.float64))
        random = []
        for _ in range(draws):
            weights = torch.randn(len(values), generator=generator, dtype=torch.float64)
            row = (weights @ written)[None] / weights.norm()
            length = (values * weights).norm() / weights.norm()  # |M r|
            random.append(float((plain - metric(row, -values[i : i + 1] / length)).mean()))
        effects.append(mean_estimate(gone))
        nulls.append(null_of(effects[-1].mean, random))
    whole = plain - metric(written, -torch.ones(len(written), dtype=torch.float64))
    return SingularEffects(
        part=part, task=task.name, share=found.shares[:n], effects=tuple(effects),
        nulls=tuple(nulls), whole=mean_estimate(whole),
    )  # fmt: skip


def _parsed(model: LanguageModel, part: str) -> Component:
    found = Component.parse(part)
    model.require_component(found)
    head = found.site == "z" and found.index is not None
    if not head and (found.site != "mlp_out" or found.index is not None):
        raise InterpError(f"the singular directions of {part}", "not a head or an MLP's output",
                          "write L9H6 or L11.mlp_out")  # fmt: skip
    block = model.require_decoder("singular directions").blocks[found.layer]
    if (block.ln1_post if head else block.ln2_post) is not None:
        what = "a norm or a factor follows it, so that its map is not the whole of what it writes"
        raise InterpError(f"the singular directions of {part}", what, "use a model without")
    if not head:
        _ = block.neurons
    return found


def _edited(model: LanguageModel, part: str, square: Tensor, name: str) -> Change:
    """X + x square of what a part writes, `square` (d_model, d_model) in its written space."""
    found = _parsed(model, part)
    block = model.require_decoder("singular directions").blocks[found.layer]
    if found.index is None:
        bias = block.neurons.down.bias

        def of_mlp(old: Tensor, tokens: Tokens) -> Tensor:
            without = old if bias is None else old - bias.to(old)
            return old + without @ square.to(old)

        edit = one_edit("scale singular values", found, of_mlp)
    else:
        writing = block.attn.W_O[found.index].double().cpu()
        inside = writing @ square @ torch.linalg.pinv(writing)  # acts on z as `square` on z O

        def of_head(old: Tensor, tokens: Tokens) -> Tensor:
            return old + old @ inside.to(old)

        edit = one_edit("scale singular values", found, of_head)
    return Change(name=name, edits=(edit,))


def written_by(model: LanguageModel, part: str, rows: Tensor) -> tuple[str, Tensor, bool]:
    """How a part's tensor W writes along rows (k, d_model): its name, W rows^T, and its layout.

    W' = W + W rows^T diag(c) rows adds c_i (x . r_i) r_i to what the part writes. The tensor of
    that name is stored as W, or transposed if the last value is true. For a head, W rows^T is 0
    outside its rows of W_O.

    Raises:
        InterpError: as in `singular_directions`, or the weights are not a tensor of their own.
    """
    found = _parsed(model, part)
    block = model.require_decoder("singular directions").blocks[found.layer]
    linear = block.neurons.down if found.index is None else block.attn.o
    left = linear.weight.detach().double().cpu() @ rows.T
    if found.index is not None:
        kept = slice(found.index * model.d_head, (found.index + 1) * model.d_head)
        only = torch.zeros_like(left)
        only[kept] = left[kept]
        left = only
    held = dict(plain_view(model).named_parameters())
    key = next((k for k, x in held.items() if x.data_ptr() == linear.weight.data_ptr()), None)
    if key is None:
        what = "its weights are not a tensor of their own"
        raise InterpError(f"the weights of {part} in {model.name}", what, "use the change")
    return key, left, tuple(held[key].stride()) != tuple(linear.weight.stride())


def low_rank_of(left: Tensor, rows: Tensor, turned: bool) -> LowRank:
    """The summand left rows of a tensor, which is stored transposed if `turned`."""
    one, two = (rows.T, left.T) if turned else (left, rows)
    return LowRank(left=one.contiguous(), right=two.contiguous())


def _as_weights(
    model: LanguageModel, part: str, rows: Tensor, added: Tensor, name: str
) -> WeightDelta:
    """The same as a change of the tensor through which the part writes."""
    key, left, turned = written_by(model, part, rows)
    low = {key: (low_rank_of(left * added, rows, turned),)}
    return WeightDelta(name=name, base=model.hash, low_rank=low)
