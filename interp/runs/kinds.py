"""The kinds of change: zero, scale, add, project out, mean, patch, resample, sets, no choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Positions, listed, reads_arguments, texts_of
from interp.core.components import EXPERT_SITES, SINGLE, SITES, Component
from interp.core.errors import InterpError, unknown
from interp.core.nulls import matched_components
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.engine.decode import CHANGEABLE
from interp.models.language_model import Address, LanguageModel
from interp.results.direction import Direction
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit, NewValue, Tokens, ValueTable
from interp.runs.stored_runs import site_width

AblationKind = Literal["zero", "mean", "resample", "patch", "steer"]
"""The kinds of `make_ablation`."""

UNLIMITED = 1e9
"""A memory budget that refuses nothing, in GB."""


@reads_arguments
def zero(component: str, *, positions: Positions = "all") -> Change:
    """Replace a component by zero."""
    return _one("zero", component, lambda old, tokens: torch.zeros_like(old), positions)


@reads_arguments
def scale(component: str, factor: float, *, positions: Positions = "all") -> Change:
    """Multiply a component by a factor."""
    return _one("scale", component, lambda old, tokens: old * factor, positions)


@reads_arguments
def add(
    component: str | Direction,
    vector: Tensor | None = None,
    *,
    coefficient: float = 1.0,
    positions: Positions = "all",
) -> Change:
    """Add `coefficient * vector` to a component (steering), or a direction to its own site.

    Raises:
        InterpError: no vector, or one that is not finite or (during a run) of another width.
    """
    component, vector = _vector(component, vector)
    if not bool(vector.isfinite().all()):
        raise InterpError(f"a vector for {component}", "not finite", "give finite numbers")

    def value(old: Tensor, tokens: Tokens) -> Tensor:
        return old + coefficient * _fitting(vector, old, component)

    return _one("add", component, value, positions)


@reads_arguments
def project_out(
    component: str | Direction, direction: Tensor | None = None, *, positions: Positions = "all"
) -> Change:
    """Remove a direction: x - (x . r) r with r of length one, from a component or its own site.

    Raises:
        InterpError: no direction, or one that is zero.
    """
    component, direction = _vector(component, direction)
    length = float(direction.norm())
    if not 0 < length < float("inf"):
        found = f"a direction of length {length:g}"
        raise InterpError(f"projecting out of {component}", found, "give a finite one, not zero")

    def value(old: Tensor, tokens: Tokens) -> Tensor:
        unit = _fitting(direction / length, old, component)
        return old - (old @ unit)[:, None] * unit

    return _one("project_out", component, value, positions)


@reads_arguments
def exclude(component: str, *, positions: Positions = "all") -> Change:
    """Forbid a router to choose an expert, such as L3E5: its logit becomes minus infinity.

    The next best expert is used in its place, and the weights are those of a router without it. If
    weights are shares of all experts (OLMoE, Qwen2-MoE), those of tokens that do not use it rise
    too. `zero` leaves the choice and the weights as they are, and removes what the expert writes. A
    shared expert, which no router chooses, writes nothing in both cases.

    Raises:
        InterpError: the component is not one expert.
    """
    part = Component.parse(component)
    if part.site not in EXPERT_SITES or part.index is None:
        raise InterpError(f"excluding {component}", "it is not an expert", "write L3E5")
    edit = one_edit(
        "exclude",
        Component(part.layer, "router", part.index),
        lambda old, tokens: torch.full_like(old, -torch.inf),
        positions=positions,
    )
    return Change(name=f"exclude L{part.layer}E{part.index}", edits=(edit,))


@reads_arguments
def mean(
    model: LanguageModel,
    component: str,
    reference: Task | Prompt | Sequence[Prompt],
    *,
    pooled: bool = True,
    positions: Positions = "all",
) -> Change:
    """Replace a component by its mean over a reference set of prompts (a task: its clean ones).

    Args:
        model: the model the means are taken on.
        component: which one; not a pattern, whose keys differ between prompts.
        reference: the prompts averaged over.
        pooled: one mean over every token of the reference; otherwise one mean for each position,
            over the prompts that have this position.
        positions: the tokens at which it is replaced.

    Raises:
        InterpError: a pattern, or (per position) a prompt longer than every reference.
    """
    part = Component.parse(component)
    if part.site == "pattern":
        raise InterpError("the mean of pattern", "keys differ between prompts", "use z")
    values = component_values(model, part, reference)
    if pooled:
        vector = torch.cat(values).mean(0)
        return _one("mean", component, lambda old, tokens: vector.expand_as(old).clone(), positions)
    longest = max(len(value) for value in values)
    table = torch.stack(
        [torch.stack([v[p] for v in values if len(v) > p]).mean(0) for p in range(longest)]
    )

    def value(old: Tensor, tokens: Tokens) -> Tensor:
        if len(old) and int(tokens.positions.max()) >= longest:
            raise InterpError(
                f"the mean of {component} at position {int(tokens.positions.max())}",
                f"the reference prompts have at most {longest} tokens",
                "use pooled=True or longer references",
            )
        return table[tokens.positions.to(table.device)]

    return _one("mean", component, value, positions)


@reads_arguments
def patch(
    model: LanguageModel,
    component: str | Sequence[str],
    source: Task | Prompt | Sequence[Prompt],
    *,
    positions: Positions = "all",
) -> Change:
    """Replace a component by its value in another run: prompt i takes it from `source[i]`.

    Several components are replaced together. A task stands for its clean prompts, one text for the
    source of prompt 0 alone.

    Raises:
        InterpError: no component, or a source prompt that is too short.
    """
    parts = [Component.parse(label) for label in listed(component)]
    if not parts:
        raise InterpError("patching", "no component", "give at least one")
    edits = tuple(
        one_edit("patch", part, _from_runs(str(part), values), positions=positions)
        for part, values in zip(parts, values_of(model, parts, source), strict=True)
    )
    return Change(name=f"patch {', '.join(map(str, parts))}", edits=edits)


@reads_arguments
def resample(
    model: LanguageModel,
    component: str,
    reference: Task | Prompt | Sequence[Prompt],
    *,
    n: int,
    seed: int = 0,
    positions: Positions = "all",
) -> Change:
    """Replace a component by its value on a reference prompt drawn for each of `n` prompts."""
    texts = texts_of(reference)
    if not texts:
        raise InterpError(f"resampling {component}", "no reference prompts", "give at least one")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(texts), (n,), generator=generator).tolist()
    values = component_values(model, Component.parse(component), texts)
    return _one("resample", component, _from_runs(component, [values[i] for i in drawn]), positions)


@reads_arguments
def make_ablation(
    model: LanguageModel,
    components: Sequence[str],
    kind: AblationKind = "zero",
    *,
    values: Mapping[Address, Tensor] | None = None,
    name: str = "",
) -> Change:
    """A set of components that get new values together.

    Args:
        model: the model they belong to.
        components: labels such as L17H11, L26N6475, L5.resid_post; one label is a set of one.
        kind: "zero"; "mean", "resample" or "patch", which set the components to `values`; or
            "steer", which adds `values`.
        values: whole sites, as `site_values` gives them: (prompts or 1, positions or 1, ...). The
            last position belongs to the last token of the text.
        name: shown in tables; the kind and the components by default.

    Raises:
        InterpError: no components, a repeated one, an unknown kind, a site that cannot be set while
            decoding, a component the model lacks, or values that are missing, not finite or of
            another shape.
    """
    components = listed(components)
    parts = [Component.parse(label) for label in components]
    if kind not in get_args(AblationKind):
        raise unknown("kind of ablation", kind, get_args(AblationKind))
    if not parts or len(set(parts)) < len(parts):
        raise InterpError(
            f"ablating {list(components)}", "no components, or a repeated one", "give each once"
        )
    grouped: dict[Address, list[int | None]] = {}
    for part in parts:
        if part.site not in CHANGEABLE:
            raise InterpError(f"ablating {part}", f"site {part.site}", f"use {CHANGEABLE}")
        grouped.setdefault((part.layer, part.site), []).append(part.index)
    edits = []
    for address, numbers in grouped.items():
        model.require_components(*address, numbers)
        if len(numbers) > 1 and None in numbers:
            raise InterpError(
                f"ablating {list(components)}",
                "a whole site and one of its parts",
                "give one of them",
            )
        chosen = tuple(number for number in numbers if number is not None) or None
        if kind == "zero":
            width = site_width(model, address[1], whole=chosen is None)
            taken = torch.zeros(1, 1, len(chosen or (0,)), width, dtype=model.dtype)
        elif values is None or address not in values:
            raise InterpError(
                f"{kind} ablation of L{address[0]}.{address[1]}", "no values", "give site_values"
            )
        else:
            _require_values(model, values[address], address)
            taken = _of_parts(values[address], address[1], chosen)
        edits.append(
            Edit(
                name=kind,
                layer=address[0],
                site=address[1],
                components=chosen,
                value=ValueTable(values=taken, added=kind == "steer"),
            )
        )
    return Change(name=name or f"{kind} {', '.join(components)}", edits=tuple(edits))


def random_like(
    model: LanguageModel, components: Sequence[str], draws: int, *, seed: int = 0
) -> list[list[str]]:
    """Different random sets matched in kind, layer and count: the null of a selection.

    See `interp.core.nulls.matched_components`. No set comes twice, so there are fewer than `draws`
    if fewer exist: for three heads of a layer with six heads there is one other set.
    """
    parts = [Component.parse(label) for label in listed(components)]
    rng = np.random.default_rng(seed)
    found: dict[frozenset[Component], list[Component]] = {}
    for _ in range(20 * draws):
        if len(found) == draws:
            break
        drawn = matched_components(parts, model.n_layers, model.size, rng)
        found.setdefault(frozenset(drawn), drawn)
    return [[str(component) for component in drawn] for drawn in found.values()]


def component_values(
    model: LanguageModel, component: Component, prompts: Task | Prompt | Sequence[Prompt]
) -> list[Tensor]:
    """A component's value at every token of every prompt: (positions, width) each."""
    return values_of(model, [component], prompts)[0]


def values_of(
    model: LanguageModel,
    components: Sequence[Component],
    prompts: Task | Prompt | Sequence[Prompt],
) -> list[list[Tensor]]:
    """`component_values` of several components, read in one run."""
    rows = [model.tokenize(prompt).tokens for prompt in texts_of(prompts)]
    seen = run_with_cache(
        model,
        rows,
        sites=list(dict.fromkeys(part.site for part in components)),
        layers=sorted({part.layer for part in components}),
        budget_gb=UNLIMITED,
    )
    found = []
    for part in components:
        read = one_edit("read", part, lambda old, tokens: old).read
        values = seen[part.layer, part.site]
        found.append([read(values[i, : len(row)]).to(model.device) for i, row in enumerate(rows)])
    return found


def one_edit(
    name: str,
    component: Component,
    value: NewValue,
    *,
    positions: Positions = "all",
    by_token: bool = True,
    reads: bool = False,
) -> Edit:
    """An edit of one component."""
    return Edit(
        name=name,
        layer=component.layer,
        site=component.site,
        components=None if component.index is None else (component.index,),
        value=value,
        positions=positions,
        by_token=by_token,
        reads=reads,
    )


def _one(name: str, component: str, value: NewValue, positions: Positions) -> Change:
    part = Component.parse(component)
    edit = one_edit(name, part, value, positions=positions)
    return Change(name=f"{name} {part}", edits=(edit,))


def _vector(component: str | Direction, vector: Tensor | None) -> tuple[str, Tensor]:
    """The component and the vector that are meant: a direction has both."""
    if isinstance(component, Direction):
        return f"L{component.layer}.{component.site}", component.vector
    if vector is None:
        raise InterpError(f"a vector for {component}", "none", "give one, or a Direction alone")
    return component, vector


def _fitting(vector: Tensor, old: Tensor, component: str) -> Tensor:
    if vector.shape != old.shape[1:]:
        raise InterpError(
            f"a vector for {component}",
            f"shape {tuple(vector.shape)}, the component has {tuple(old.shape[1:])}",
            "give one number per dimension",
        )
    return vector.to(old)


def _require_values(model: LanguageModel, values: Tensor, address: Address) -> None:
    """Refuse, by an `InterpError`, what is no site as `site_values` gives it."""
    layer, site = address
    axis = SITES[site]
    size = () if axis is None else (model.size(axis),)
    size += () if site in SINGLE else (model.d_head if site == "z" else model.d_model,)
    found = tuple(values.shape) if isinstance(values, Tensor) else None
    if found is None or found[2:] != size or not all(found) or not bool(values.isfinite().all()):
        raise InterpError(
            f"values of L{layer}.{site}",
            f"{type(values).__name__}" if found is None else f"shape {found}, or not finite",
            f"give finite numbers of shape (prompts or 1, positions or 1, {str(size)[1:]}",
        )


def _of_parts(whole: Tensor, site: str, chosen: tuple[int, ...] | None) -> Tensor:
    if chosen is None:
        return whole.flatten(2)[:, :, None]
    taken = whole[:, :, list(chosen)]
    return taken[..., None] if site in SINGLE else taken


def _from_runs(component: str, values: Sequence[Tensor]) -> NewValue:
    """A component's values in other runs, one (positions, width) for each prompt."""

    def of(prompt: int, positions: Tensor, width: int) -> Tensor:
        asked = f"{component} of prompt {prompt} from another run"
        if prompt >= len(values):
            found = f"there are sources for {len(values)} prompts only"
            raise InterpError(asked, found, "give one source for each prompt")
        if int(positions.max()) >= (length := len(values[prompt])):
            raise InterpError(
                asked,
                f"token {int(positions.max())}, counted from 0, is to be replaced; its source has "
                f"{length} tokens",
                "give a source at least as long as the text, including generated tokens, or "
                "positions that the source has, such as positions=0",
            )
        new = values[prompt][positions.to(values[prompt].device)]
        # Patterns of a shorter source: no attention to the keys it does not have.
        return torch.nn.functional.pad(new, (0, max(0, width - new.shape[-1])))[..., :width]

    def value(old: Tensor, tokens: Tokens) -> Tensor:
        new = torch.zeros_like(old)
        for prompt in tokens.prompts.unique().tolist():
            rows = tokens.prompts == prompt
            new[rows] = of(prompt, tokens.positions[rows], old.shape[-1]).to(old)
        return new

    return value
