"""Fitting the singular values of some parts: few numbers, trained, as a weight delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from interp.core.arguments import listed, reads_arguments
from interp.core.errors import InterpError
from interp.core.run_options import Progress
from interp.core.schema import Count, Positive, checked
from interp.core.statistics import Estimate, mean_estimate
from interp.deltas.pair_losses import Pairs, TokenRows, encoded_pairs, pair_losses, row_batches
from interp.deltas.singular import low_rank_of, singular_directions, written_by
from interp.models.language_model import LanguageModel
from interp.models.loading import plain_view
from interp.models.weight_delta import LowRank, WeightDelta
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True)
class SingularFit(Tabled):
    """Fitted scales of singular values, and what they change on held-out continuations.

    Losses are in nats per token, a mean over the tokens of each continuation. Changes are after
    minus before, paired by row: negative is better.

    Attributes:
        delta: the change of the weights by the fitted scales.
        scales: for each part, the factor of each of its strongest singular values.
        course: (steps,) loss of each step's rows, before it.
        before: held-out loss of the model as it was.
        change: by the fit.
        shuffled: by as many scales, fitted to the same texts with each other's continuations.
        random: by as many scales of random orthogonal directions of what the parts write.
        beyond_shuffled, beyond_random: `change` minus these, paired by row.
    """

    delta: WeightDelta
    scales: Mapping[str, np.ndarray] = field(repr=False)
    course: np.ndarray = field(repr=False)
    before: Estimate
    change: Estimate
    shuffled: Estimate
    random: Estimate
    beyond_shuffled: Estimate
    beyond_random: Estimate

    def __repr__(self) -> str:
        return (
            f"SingularFit({self.delta.name}: held-out loss {self.before}, change {self.change}; "
            f"fitted to shuffled answers {self.shuffled}, scales of random directions "
            f"{self.random})"
        )

    def to_dataframe(self) -> Any:
        """One row per scale."""
        from pandas import DataFrame

        return DataFrame(
            [
                {"part": part, "direction": i, "scale": scale}
                for part, scales in self.scales.items()
                for i, scale in enumerate(scales)
            ]
        )


@reads_arguments
def fit_singular(
    model: LanguageModel,
    parts: Sequence[str],
    train: Pairs,
    held_out: Pairs,
    *,
    n: int = 64,
    steps: int = 40,
    rate: float = 0.02,
    batch: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> SingularFit:
    """Fit factors of the strongest singular values of some parts, beside two controls.

        x' = x + sum over i of (z_i - 1) (x . w_i) w_i,   x what a part writes, z_i = 1 at first

    The z follow the gradient of the mean cross-entropy of the continuations (Adam); nothing else is
    trained. Both controls fit as many numbers in as many steps: to the same texts with shuffled
    continuations, which can learn what answers look like but not which is right; and along random
    orthogonal directions in place of the singular ones.

    Args:
        model: a model of a known family; it is not changed.
        parts: heads (L9H6) and MLP outputs (L11.mlp_out), each once.
        train: texts, and the continuations to make likely.
        held_out: other texts and continuations, which are only measured.
        n: singular values of each part, from the strongest; all if there are fewer.
        steps: steps of Adam.
        rate: its learning rate.
        batch: rows of a step.
        seed: of the order of the rows, the shuffle and the random directions.
        progress: called with (steps done, steps of all three fits).

    Raises:
        InterpError: no parts or one twice, no rows, a text in both sets, continuations that are all
            equal (a shuffle changes nothing), an option out of range, and as `singular_directions`.

    Source: Sun et al. 2025, arXiv 2501.06252 (one factor for each singular value). Departure: they
    train by reinforcement, and scale the singular values of whole weight matrices; here
    continuations are given, and the map of a head is V O.
    """
    names = listed(parts)
    if not names or len({*names}) < len(names):
        raise InterpError(f"scales of {names}", "no parts, or one twice", "give each part once")
    n, steps, batch = (checked(Count, x, "numbers, steps and rows") for x in (n, steps, batch))
    rate = checked(Positive, rate, "a learning rate")
    rows, tested = encoded_pairs(model, train, "fit"), encoded_pairs(model, held_out, "hold out")
    seen = [{tokens[:start] for tokens, start in some} for some in (rows, tested)]
    if again := len(seen[0] & seen[1]):
        found = f"{again} texts are among those of training"
        raise InterpError("held-out texts", found, "give others")
    mixed = _shuffled(rows, seed)
    model.refuse_changed("fitting singular values")
    found = {part: singular_directions(model, part, k=1).written for part in names}
    maps = {part: _Scaled.of(model, part, written[:n]) for part, written in found.items()}
    generator = torch.Generator().manual_seed(seed)
    turned = {
        part: _Scaled.of(model, part, _random_rows(written, n, generator))
        for part, written in found.items()
    }
    losses = _losses(model, tested)
    fits = []
    for number, (which, given) in enumerate(((maps, rows), (maps, mixed), (turned, rows))):
        fits.append(_fit(model, which, given, steps, rate, batch, seed, number, progress))
    name = f"{sum(len(x) for x in fits[0][0].values())} scales of {', '.join(names)}"
    deltas = [
        _as_delta(model, which, fit[0], name)
        for which, fit in zip((maps, maps, turned), fits, strict=True)
    ]
    changes = []
    for delta in deltas:
        with delta.applied(model):
            changes.append(_losses(model, tested) - losses)
    own, shuffled, other = changes
    return SingularFit(
        delta=deltas[0],
        scales={part: z.numpy() for part, z in fits[0][0].items()},
        course=fits[0][1],
        before=mean_estimate(losses),
        change=mean_estimate(own),
        shuffled=mean_estimate(shuffled),
        random=mean_estimate(other),
        beyond_shuffled=mean_estimate(own - shuffled),
        beyond_random=mean_estimate(own - other),
    )


@dataclass(frozen=True)
class _Scaled:
    """A part's tensor, and the factors of what scaling its written directions adds to it."""

    key: str
    left: Tensor
    rows: Tensor
    turned: bool

    @classmethod
    def of(cls, model: LanguageModel, part: str, rows: Tensor) -> _Scaled:
        key, left, turned = written_by(model, part, rows)
        return cls(key, left, rows, turned)

    def low_rank(self, z: Tensor) -> LowRank:
        """The change of the tensor by the factors z."""
        return low_rank_of(self.left * (z.double() - 1), self.rows, self.turned)


def _fit(
    model: LanguageModel, maps: Mapping[str, _Scaled], rows: TokenRows, steps: int, rate: float,
    batch: int, seed: int, number: int, progress: Progress | None,
) -> tuple[dict[str, Tensor], np.ndarray]:  # fmt: skip
    """The fitted factors of each part, and the loss of each step."""
    view = plain_view(model)
    held = {name: p.detach() for name, p in view.named_parameters()}
    scales = {part: torch.ones(len(m.rows), requires_grad=True) for part, m in maps.items()}
    adam, drawn, course = (
        torch.optim.Adam(scales.values(), lr=rate),
        row_batches(rows, batch, seed),
        [],
    )
    with torch.enable_grad():
        for step in range(steps):
            changed: dict[str, Tensor] = {}
            for part, one in maps.items():
                old = changed[one.key] if one.key in changed else held[one.key]
                changed[one.key] = old + one.low_rank(scales[part]).matrix().to(old)
            loss = pair_losses(lambda *a, w=changed, **k: functional_call(view, w, a, k),
                               next(drawn), model.device).mean()  # fmt: skip
            adam.zero_grad()
            loss.backward()
            adam.step()
            course.append(float(loss.detach()))
            if progress is not None:
                progress(number * steps + step + 1, 3 * steps)
    return {part: z.detach() for part, z in scales.items()}, np.array(course)


def _as_delta(
    model: LanguageModel, maps: Mapping[str, _Scaled], scales: Mapping[str, Tensor], name: str
) -> WeightDelta:
    low: dict[str, tuple[LowRank, ...]] = {}
    for part, one in maps.items():
        low[one.key] = (*low.get(one.key, ()), one.low_rank(scales[part]))
    return WeightDelta(name=name, base=model.hash, low_rank=low)


@torch.no_grad()
def _losses(model: LanguageModel, rows: TokenRows) -> np.ndarray:
    """(n,) the loss of each continuation."""
    view, found = plain_view(model), []
    for start in range(0, len(rows), 8):
        found.append(pair_losses(view, rows[start : start + 8], model.device))
    return torch.cat(found).double().cpu().numpy()


def _shuffled(rows: TokenRows, seed: int) -> TokenRows:
    """The texts with each other's continuations, none with its own where that is possible."""
    texts, answers = zip(*((tokens[:at], tokens[at:]) for tokens, at in rows), strict=True)
    if len({*answers}) < 2:
        do = "give texts with different continuations"
        raise InterpError("shuffled continuations", "they are all equal", do)
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(rows)) for _ in range(100)]
    order = min(orders, key=lambda one: sum(answers[i] == answers[j] for i, j in enumerate(one)))
    return [((*text, *answers[i]), len(text)) for text, i in zip(texts, order, strict=True)]


def _random_rows(written: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """As many orthonormal directions, at random in the space that the part writes to."""
    size = len(written)
    drawn = torch.randn(size, min(n, size), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T @ written
