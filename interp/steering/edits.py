"""Steering: affine edits of the residual stream, x + strength * (W R x + s) at some sites.

One record covers ablation, addition, setting a component, the affine edit, and the conditional and
null-space variants. `interp.steering.runs` makes a `Change` of it, runs it and generates with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import as_positions, listed, reads_arguments
from interp.core.chat_prompts import ChatFormat, ChatPrompts
from interp.core.components import SITES, within
from interp.core.errors import InterpError, unknown
from interp.core.schema import Brief, NotNegative, checked
from interp.engine.decode import CHANGEABLE
from interp.models.language_model import Address, LanguageModel
from interp.results.direction import Direction, orthonormal

Phase = Literal["prefill", "decode", "both"]
"""The tokens of the prompt, those generated after it, or both."""

FromEnd = str | int | Sequence[int] | None
"""Tokens of every prompt, counted from its end: -1 (or "last") is the last one, a list is several.
None or "all" is all of them."""


@dataclass(frozen=True, kw_only=True)
class AffineEdit:
    """x + (x @ reads^T) @ writes + shift.

    reads, writes: (k, d_model). shift: (1, d_model), or one row per prompt. None means 0.

    Raises:
        InterpError: one of them is not finite.
    """

    reads: Tensor | None = None
    writes: Tensor | None = None
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        for name, part in vars(self).items():
            if part is not None:
                _finite(part, f"an edit with {name}", tuple(part.shape))

    def delta(self, x: Tensor, prompts: Tensor) -> Tensor:
        """What is added to states (n, d_model) of these prompts, in the type of `x`."""
        total = torch.zeros_like(x)
        if self.reads is not None and self.writes is not None:
            total = total + (x @ self.reads.to(x).T) @ self.writes.to(x)
        if self.shift is not None:
            shift = self.shift.to(x)
            total = total + shift[prompts if len(shift) > 1 else torch.zeros_like(prompts)]
        return total


@dataclass(frozen=True, kw_only=True)
class Steering(Brief):
    """Edits by site, their tokens and prompts, and the model and chat format they were made for.

    `gate` is None or (prompts,) a strength for each prompt: 0 changes nothing, bit for bit.
    `positions` selects tokens of the prompt. It does not concern generated tokens, which `phase`
    selects.

    Raises:
        InterpError: an unknown phase, positions not counted from the prompt's end, or a gate that
            is not one finite number per prompt.
    """

    name: str
    edits: Mapping[Address, AffineEdit]
    format: ChatFormat
    model_hash: str
    phase: Phase = "both"
    gate: Tensor | None = None
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise unknown("phase", self.phase, get_args(Phase))
        if self.positions is not None and (not self.positions or max(self.positions) >= 0):
            raise InterpError(
                f"{self.name} at positions {list(self.positions)}",
                "none, or not counted from the prompt's end",
                "give negative numbers, -1 for the last token",
            )
        if self.gate is not None:
            _finite(self.gate, f"the strengths of {self.name}", (self.gate.numel(),))

    def gated(self, gate: Tensor | np.ndarray | Sequence[float]) -> Steering:
        """The same with a strength per prompt, multiplied by the strength it has already.

        Raises:
            InterpError: the strengths are not one finite number per prompt.
        """
        given = np.asarray(gate)
        n = len(self.gate) if self.gate is not None else len(given) if given.ndim else 1
        if given.dtype.kind not in "biuf" or given.shape != (n,):
            raise InterpError(
                f"the strengths {given!r:.60} of {self.name}",
                f"{given.dtype} of shape {given.shape}",
                "give one number per prompt",
            )
        strength = torch.as_tensor(given, dtype=torch.float64)
        return replace(self, gate=strength if self.gate is None else self.gate * strength)

    def only(self, prompts: Sequence[int]) -> Steering:
        """The same for some of its prompts, by number."""
        chosen = list(prompts)
        edits = {
            at: edit
            if edit.shift is None or len(edit.shift) == 1
            else replace(edit, shift=edit.shift[chosen])
            for at, edit in self.edits.items()
        }
        gate = None if self.gate is None else self.gate[chosen]
        if gate is not None and bool((gate == 1).all()):
            gate = None
        return replace(self, edits=edits, gate=gate)

    def strengths(self, prompts: Tensor, places: Tensor) -> Tensor:
        """(n,) float64 strength at tokens of these prompts.

        `places` counts from the prompt's end: tokens below 0 belong to the prompt, others are
        generated.
        """
        on, decoded = torch.ones(len(prompts), dtype=torch.float64), places >= 0
        if self.phase != "both":
            on = (decoded if self.phase == "decode" else ~decoded).double()
        if self.positions is not None:
            on = on * (decoded | torch.isin(places, torch.tensor(list(self.positions))))
        return on if self.gate is None else on * self.gate[prompts]

    def require(self, model: LanguageModel, prompts: ChatPrompts) -> None:
        """Refuse a model or prompts for which it was not made.

        Raises:
            InterpError: other weights, another chat format, another number of prompts, or a prompt
                without the positions.
        """
        if self.model_hash != model.hash:
            raise InterpError(
                self.name, f"made for other weights than {model.name}", "make it anew"
            )
        self.format.require(prompts.format, self.name)
        shortest = min(map(len, prompts.rows), default=0)
        if self.positions is not None and -min(self.positions) > shortest:
            raise InterpError(
                f"{self.name} at position {min(self.positions)}",
                f"a prompt of {shortest} tokens",
                "leave the position or the prompt out",
            )
        wanted = {len(e.shift) for e in self.edits.values() if e.shift is not None} - {1}
        wanted |= set() if self.gate is None else {len(self.gate)}
        if wanted - {len(prompts)}:
            raise InterpError(
                self.name,
                f"values for {sorted(wanted)} prompts, {len(prompts)} are run",
                "give one strength or shift per prompt, in their order",
            )


def residual_sites(model: LanguageModel, layers: Sequence[int] | None = None) -> list[Address]:
    """The residual stream of these layers after every addition to it.

    With all layers: the embedding, and the stream after each attention and each MLP. An edit at
    these sites is exact whatever was added: the output of a bias, a post-norm or an expert too.
    """
    chosen = within(layers, model.n_layers, "layer", model.name)
    found: list[Address] = []
    for layer in chosen:
        entering = [] if layer - 1 in chosen else ["resid_pre"]
        middle = ["resid_mid"] if model.sites["resid_mid"] is None else []
        found += [(layer, site) for site in (*entering, *middle, "resid_post")]
    return found


@reads_arguments
def ablate_direction(
    model: LanguageModel,
    *directions: Direction,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    positions: FromEnd = None,
    phase: Phase = "both",
) -> Steering:
    """Remove a direction, x - (x . r) r; several directions: remove the space that they span.

    Arditi et al. 2024 hook the input of a block and the outputs of its modules. With a post-norm
    (Gemma, OLMo-2) the module's output is not what is added to the stream. Here the stream itself
    is edited after each addition, also in the last block, so |x . r| is 0 up to rounding.

    Args:
        model: the model.
        directions: one, or several.
        layers: the layers; all by default.
        sites: such as ("resid_pre", "attn_out", "mlp_out"), the published ones; by default those of
            `residual_sites`.
        positions: tokens of the prompt, see `FromEnd`. What other tokens have along r is not
            removed, and attention can move it to these tokens.
        phase: tokens of the prompt, generated tokens, or both.

    Raises:
        InterpError: another model, a site that is not as wide as the stream, positions that are
            not counted from the end.
    """
    basis = orthonormal([_checked(model, direction).unit for direction in directions])
    edit = AffineEdit(reads=basis, writes=-basis)
    where = residual_sites(model, layers) if sites is None else sites_of(model, layers, sites)
    return _steering(model, "ablate", directions, where, edit, phase, positions)


@reads_arguments
def add_direction(
    model: LanguageModel,
    direction: Direction,
    *,
    coefficient: float = 1.0,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    positions: FromEnd = None,
    phase: Phase = "both",
) -> Steering:
    """Add a direction: x + c r, with the raw r oriented towards refusal: c > 0 induces refusal.

    By default at every token of the site and layer where the direction was read; for the other
    arguments see `ablate_direction`.
    """
    edit = AffineEdit(shift=coefficient * _checked(model, direction).towards_refusal[None])
    where = _own(model, direction, layers, sites)
    return _steering(model, f"add {coefficient:g}", [direction], where, edit, phase, positions)


@reads_arguments
def patch_direction(
    model: LanguageModel,
    direction: Direction,
    *,
    value: float = 0.0,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    positions: FromEnd = None,
    phase: Phase = "both",
) -> Steering:
    """Set the component along r: x - (x . r) r + value r, with r of length one towards refusal."""
    unit = _checked(model, direction).unit[None]
    edit = AffineEdit(reads=unit, writes=-unit, shift=value * unit)
    where = _own(model, direction, layers, sites)
    return _steering(model, f"patch {value:g}", [direction], where, edit, phase, positions)


@reads_arguments
def affine_edit(
    model: LanguageModel,
    direction: Direction,
    reference: Tensor,
    *,
    coefficient: float = 0.0,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    positions: FromEnd = None,
    phase: Phase = "both",
) -> Steering:
    """Affine edit: x - proj_r(x) + proj_r(reference) + c r (ACE, in arXiv 2506.00085).

    `reference` is (d_model,) the mean of the harmless class (`Candidates.reference_at`). c = 0 sets
    the component to its harmless mean, c = 1 adds the raw difference to this mean.
    """
    _finite(reference, "the reference of an affine edit", (model.d_model,))
    unit = _checked(model, direction).unit
    value = reference.double() @ unit + coefficient * direction.norm
    made = patch_direction(
        model,
        direction,
        value=float(value),
        layers=layers,
        sites=sites,
        positions=positions,
        phase=phase,
    )
    return replace(made, name=f"affine edit {coefficient:g} {direction}")


@reads_arguments
def null_space_direction(
    model: LanguageModel,
    direction: Direction,
    protected: Tensor,
    steered: Tensor,
    *,
    strength: float = 1.0,
    nullity: float = 0.5,
    ridge: float = 10.0,
    layers: Sequence[int] | None = None,
    phase: Phase = "both",
) -> Steering:
    """Add r to some states only: x + strength (w . P x) r is x on protected, x + r on steered ones.

    After AlphaSteer (arXiv 2506.07022): P projects on the null space of the protected states, and w
    is fitted by ridge regression so that w . P x = 1 on the steered states. AlphaSteer's matrix
    D P, fitted to one vector r, has this rank-one form.

    Args:
        model: the model.
        direction: r, raw, towards refusal; a negative strength steers to compliance.
        protected: (n, d_model) states at the direction's site and layer that stay as they are.
        steered: (m, d_model) states to be moved.
        strength: factor of r.
        nullity: the share of dimensions that counts as null space: those in which the protected
            states have least energy.
        ridge: penalty of the regression, in squared units of the states.
        layers: the layers; by default the one where the direction was read.
        phase: tokens of the prompt, generated tokens, or both.

    Raises:
        InterpError: no states, states of another width or not finite, a nullity that leaves no
            dimension, or a ridge that is negative or too small to solve for w.
    """
    ridge = checked(NotNegative, ridge, "ridge of null_space_direction()")
    width, wrong = model.d_model, [x.shape for x in (protected, steered) if x.dim() != 2]
    kept = int(nullity * width)
    if wrong or {protected.shape[1], steered.shape[1]} != {width} or not 0 < kept <= width:
        raise InterpError(
            f"the null space of {kept} of {width} dimensions",
            f"states of shapes {tuple(protected.shape)} and {tuple(steered.shape)}",
            "give (n, d_model) states and a nullity between 0 and 1",
        )
    for name, states in (("protected", protected), ("steered", steered)):
        _finite(states, f"{name} states", (max(1, len(states)), width))
    held = protected.double()
    space = torch.linalg.eigh(held.T @ held).eigenvectors[:, :kept]
    seen = steered.double() @ space
    penalty = ridge * torch.eye(kept, dtype=torch.float64)
    try:
        weights = torch.linalg.solve(seen.T @ seen + penalty, seen.sum(0))
    except torch.linalg.LinAlgError as error:
        found = "the regression has no single solution"
        raise InterpError(f"a ridge of {ridge:g}", found, "give a larger one") from error
    shift = strength * _checked(model, direction).towards_refusal
    edit = AffineEdit(reads=(space @ weights)[None], writes=shift[None])
    where = _own(model, direction, layers)
    return _steering(model, f"null space {strength:g}", [direction], where, edit, phase)


@reads_arguments
def condition_similarity(states: Tensor, condition: Tensor) -> Tensor:
    """cos(h, tanh(P_c h)) of states (n, d_model): CAST's test (arXiv 2409.05907).

    P_c projects on the condition vector. The value is the same for h and -h: it says how much of a
    state lies along the vector, and not in which sense.

    Raises:
        InterpError: the condition is zero, or one of them has another shape or is not finite.
    """
    _finite(condition, "a condition", (condition.numel(),))
    _finite(states, "states for a condition", (len(states), len(condition)))
    if not bool(condition.any()):
        raise InterpError("a condition", "a vector of length 0", "give one that is not zero")
    unit = condition.double() / condition.double().norm()
    wide = states.double()
    along = torch.tanh((wide @ unit)[:, None] * unit)
    return torch.nn.functional.cosine_similarity(wide, along, dim=-1)


@reads_arguments
def conditional_steering(
    steering: Steering, similarity: Tensor, threshold: float, *, steer_above: bool = True
) -> Steering:
    """The steering, only on prompts whose similarity is above (or not above) a threshold.

    `similarity` is read once in the plain prompts, see `condition_similarity`.

    Raises:
        InterpError: similarities that are not one finite number per prompt.
    """
    _finite(similarity, "similarities", (similarity.numel(),))
    gate = (similarity > threshold) == steer_above
    side = "above" if steer_above else "not above"
    return replace(steering.gated(gate.double()), name=f"{steering.name} {side} {threshold:g}")


def _finite(values: Tensor, what: str, shape: tuple[int, ...]) -> None:
    """Refuse, by an `InterpError`, another shape, or numbers that are not finite."""
    if tuple(values.shape) != shape or not bool(values.isfinite().all()):
        odd = "" if bool(values.isfinite().all()) else ", some of them not finite"
        found = f"values of shape {tuple(values.shape)}{odd}"
        raise InterpError(what, found, f"give finite numbers of shape {shape}")


def _checked(model: LanguageModel, direction: Direction) -> Direction:
    direction.require_model(model)
    return direction


def _own(
    model: LanguageModel,
    direction: Direction,
    layers: Sequence[int] | None,
    sites: Sequence[str] | None = None,
) -> list[Address]:
    """The direction's own site in its own layer, or others."""
    chosen = [direction.layer] if layers is None else layers
    return sites_of(model, chosen, [direction.site] if sites is None else sites)


def sites_of(
    model: LanguageModel, layers: Sequence[int] | None, sites: Sequence[str]
) -> list[Address]:
    """Sites as wide as the residual stream in these layers, or in all layers for None.

    Raises:
        InterpError: another site, or no such layer.
    """
    sites = listed(sites)
    for site in sites or [""]:
        if site not in CHANGEABLE or SITES[site] is not None:
            wide = ", ".join(name for name in CHANGEABLE if SITES[name] is None)
            found = "not as wide as the stream, or no site that can be changed"
            raise InterpError(f"steering at {site!r}", found, f"use some of {wide}")
        model.require_site(site)
    chosen = within(layers, model.n_layers, "layer", model.name)
    return [(layer, site) for layer in chosen for site in sites]


def _steering(
    model: LanguageModel,
    verb: str,
    directions: Sequence[Direction],
    where: Sequence[Address],
    edit: AffineEdit,
    phase: Phase,
    positions: FromEnd = None,
) -> Steering:
    for direction in directions:
        direction.format.require(directions[0].format, f"steering with {direction}")
    return Steering(
        name=f"{verb} {', '.join(map(str, directions))}",
        edits=dict.fromkeys(where, edit),
        format=directions[0].format,
        model_hash=model.hash,
        phase=phase,
        positions=_from_the_end(positions),
    )


def _from_the_end(positions: FromEnd) -> tuple[int, ...] | None:
    if positions is None or (isinstance(positions, str) and positions == "all"):
        return None
    found = [-1 if place == "last" else place for place in listed(as_positions(positions))]
    if not all(isinstance(place, int) for place in found):
        raise InterpError(
            f"steering at positions {positions!r}",
            "neither 'all', 'last' nor whole numbers",
            "count from the end of the prompt: -1 is its last token",
        )
    return tuple(found)
