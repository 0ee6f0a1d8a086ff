"""Difference-in-means directions at every layer and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.chat_prompts import ChatFormat, PromptsLike
from interp.core.components import SITES, within
from interp.core.errors import InterpError, unknown
from interp.core.schema import Brief
from interp.models.chat import plain_prompts
from interp.models.language_model import LanguageModel
from interp.results.direction import KINDS, Direction, DirectionKind
from interp.runs.capture import run_with_cache
from interp.runs.stored_runs import site_values


@dataclass(frozen=True, kw_only=True)
class Candidates(Brief):
    """Difference vectors of every position and layer, (positions, layers, d_model) float64.

    `reference` holds the means of the second class, to which an affine edit returns. The other
    fields are those of the `Direction`s that `at` gives. Where all prompts have the same tokens up
    to a position, the vector is zero: see `zeros`.
    """

    vectors: Tensor
    reference: Tensor
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    site: str
    kind: DirectionKind
    sign: int
    n: tuple[int, int]
    format: ChatFormat
    model_hash: str
    rows: tuple[str, ...] = ()

    @property
    def norms(self) -> Tensor:
        """(positions, layers) lengths."""
        return self.vectors.norm(dim=-1)

    @property
    def zeros(self) -> list[tuple[int, int]]:
        """(layer, position) of the vectors of length 0, where the two classes do not differ."""
        where = (self.norms == 0).nonzero().tolist()
        return [(self.layers[layer], self.positions[p]) for p, layer in where]

    def at(self, layer: int, position: int) -> Direction:
        """One candidate.

        Raises:
            InterpError: a position or layer not among them, or a vector that is not finite.
        """
        row, column = self._place(layer, position)
        kept = ("site", "kind", "sign", "n", "format", "model_hash", "rows")
        return Direction(
            vector=self.vectors[row, column],
            position=position,
            layer=layer,
            token=self.tokens[row],
            **{name: getattr(self, name) for name in kept},
        )

    def reference_at(self, layer: int, position: int) -> Tensor:
        """(d_model,) mean of the second class."""
        return self.reference[self._place(layer, position)]

    def _place(self, layer: int, position: int) -> tuple[int, int]:
        if position not in self.positions or layer not in self.layers:
            raise InterpError(
                f"the candidate at layer {layer}, position {position}",
                "not among them",
                f"layers {self.layers}, positions {self.positions}",
            )
        return self.positions.index(position), self.layers.index(layer)


@reads_arguments
def difference_in_means(
    model: LanguageModel,
    first: PromptsLike,
    second: PromptsLike,
    *,
    kind: DirectionKind = "harmful-harmless",
    site: str = "resid_pre",
    last: int | None = None,
    layers: Sequence[int] | None = None,
    least: int = 2,
    states: tuple[Tensor, Tensor] | None = None,
) -> Candidates:
    """mean(first) - mean(second) of the residual stream at the last tokens, in float64.

    With chat prompts the last tokens are the template's post-instruction tokens (arXiv
    2406.11717). One more token includes the last token of the instruction, at which 2507.11878
    reads harmfulness instead of refusal. The sign is +1 (the first class is refused), or -1 for the
    kind "task".

    Args:
        model: a model whose weights are as loaded.
        first: harmful, refused or pseudo-harmful prompts; for "task" the answered ones.
        second: harmless or answered prompts; for "task" the refused ones.
        kind: what the two classes are, see `DirectionKind`.
        site: resid_pre is the input of a block.
        last: how many tokens; the end that all prompts share by default.
        layers: the layers; all by default.
        least: the smallest number of prompts of a class.
        states: the result of `end_states` for the two classes, if it is known already.

    Raises:
        InterpError: an unknown kind, too few prompts, two formats, a prompt shorter than `last`,
            a site that is not as wide as the residual stream, or states that are not finite or have
            another shape.
    """
    if kind not in KINDS:
        raise unknown("kind of direction", kind, KINDS)
    sides = [plain_prompts(model, prompts) for prompts in (first, second)]
    sides[0].format.require(sides[1].format, "two classes of prompts")
    n = (len(sides[0]), len(sides[1]))
    if min(n) < least:
        raise InterpError(f"a {kind} direction", f"{n} prompts of the two classes", f"need {least}")
    tails = {side.tail for side in sides}
    count = last if last is not None else max(1, min(map(len, tails)))
    chosen = within(layers, model.n_layers, "layer", model.name)
    if states is None:
        first_states, second_states = (
            end_states(model, side, site=site, last=count, layers=chosen) for side in sides
        )
    else:
        given = listed(states)
        wanted = [(size, count, len(chosen), model.d_model) for size in n]
        if [getattr(one, "shape", None) for one in given] != wanted or not all(
            torch.is_tensor(one) and one.is_floating_point() and bool(one.isfinite().all())
            for one in given
        ):
            found = ", ".join(str(tuple(getattr(one, "shape", ()))) for one in given)
            do = f"give two tensors of finite numbers, of shapes {wanted[0]} and {wanted[1]}"
            raise InterpError(f"states for a {kind} direction", f"shapes {found}", do)
        first_states, second_states = given
    means = [first_states.mean(0), second_states.mean(0)]
    rows = [row for side in sides for row in side.rows]
    ends = [{row[-k] for row in rows} for k in range(count, 0, -1)]
    return Candidates(
        vectors=means[0] - means[1],
        reference=means[1],
        positions=tuple(range(-count, 0)),
        layers=tuple(chosen),
        tokens=tuple(model.strings([*end])[0] if len(end) == 1 else "" for end in ends),
        site=site,
        kind=kind,
        sign=-1 if kind == "task" else 1,
        n=n,
        format=sides[0].format,
        model_hash=model.hash,
        rows=tuple(dict.fromkeys(sides[0].hashes + sides[1].hashes)),
    )


@reads_arguments
def mean_difference(
    model: LanguageModel,
    first: PromptsLike,
    second: PromptsLike,
    *,
    layer: int,
    site: str = "resid_post",
) -> Direction:
    """mean(first) - mean(second) of the residual stream at the last token, in float64.

    One layer and position of `difference_in_means`. `interp.runs.add(direction)` adds it to every
    token of a run or of a generated text, and `interp.runs.project_out(direction)` removes it. As a
    control, add `interp.results.random_direction(direction)`, which has the same length.

    Args:
        model: a model whose weights are as loaded.
        first: prompts of one class.
        second: prompts of the other.
        layer: the layer.
        site: a site of the residual stream.

    Raises:
        InterpError: no such layer or site, or a class without prompts.

    Source: Turner et al. 2023 (arXiv 2308.10248); Rimsky et al. 2023 (arXiv 2312.06681).
    """
    where = {"site": site, "layers": [layer], "last": 1, "least": 1}
    return difference_in_means(model, first, second, kind="contrast", **where).at(layer, -1)


def end_states(
    model: LanguageModel,
    prompts: PromptsLike,
    *,
    site: str = "resid_pre",
    last: int = 1,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """A site at the last tokens of every prompt: (prompts, last, layers, d_model) in float64.

    Raises:
        InterpError: a prompt shorter than `last`, a site of another width, or inside `intervene`.
    """
    model.require_site(site)
    model.refuse_changed("reading states", "run_with_cache()")
    rows = plain_prompts(model, prompts).rows
    if SITES[site] is not None or not rows or min(map(len, rows)) < last or last < 1:
        raise InterpError(
            f"{site} at the last {last} tokens of {len(rows)} prompts",
            "no residual site, or a prompt without so many",
            "read resid_pre, resid_mid, resid_post, attn_out or mlp_out, and fewer tokens",
        )
    chosen = within(layers, model.n_layers, "layer", model.name)
    if model.decoder is not None:
        found = site_values(model, rows, [(layer, site) for layer in chosen], last=last)
        return torch.stack([found[layer, site].double().cpu() for layer in chosen], 2)
    ends = [[-back] * len(rows) for back in range(last, 0, -1)]
    seen = [run_with_cache(model, rows, sites=[site], layers=chosen, positions=end) for end in ends]
    columns = [torch.stack([one[layer, site] for layer in chosen], 1) for one in seen]
    return torch.stack(columns, 1).double()
