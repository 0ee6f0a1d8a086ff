"""Sets of components set to something else together, and what that does to the next token.

One description, `Ablation`, serves the fast engine here, cached generation
(`interp.runs.generation`) and, as plain interventions, `interp.runs.interventions.intervene`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.components import SITES, Component
from interp.core.errors import InterpError, unknown
from interp.core.nulls import matched_components
from interp.engine.decode import CHANGEABLE, Change, Changes
from interp.models.language_model import Address, LanguageModel
from interp.runs.interventions import Intervention, Operation
from interp.runs.stored_runs import _width

Kind = Literal["zero", "mean", "resample", "patch", "steer"]
Where = int | Literal["all"]
"""Which tokens: the last k of the prompt (or, while generating, up to the trigger), or all."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The components of one layer and site, and their new values.

    `values` is (prompts or 1, positions or 1, components, width); a neuron's width is 1. Its
    last position is the last token changed. `components` is None for a whole site.
    """

    components: np.ndarray | None
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Components, and what they are set to (or, for `steer`, what is added to them)."""

    name: str
    kind: Kind
    components: tuple[str, ...]
    parts: Mapping[Address, Part]

    @property
    def first_layer(self) -> int:
        """The lowest layer changed; nothing below it can differ."""
        return min(layer for layer, _ in self.parts)

    def require(self, prompts: int, where: Where) -> None:
        """Refuse values that do not fit so many prompts, or fewer positions than are changed.

        Raises:
            InterpError: either.
        """
        for (layer, site), part in self.parts.items():
            rows, width = part.values.shape[:2]
            short = width > 1 and (where == "all" or width < where)
            if rows not in (1, prompts) or short:
                raise InterpError(
                    f"{self.name}: values of L{layer}.{site} over {rows} prompts and {width} "
                    "positions",
                    f"{prompts} prompts, where={where!r}",
                    "give one value for all, or one for each prompt and each position changed",
                )

    def new(self, address: Address, old: Tensor, prompts: Tensor, back: Tensor) -> Tensor:
        """The new value of a whole site.

        Args:
            address: layer and site.
            old: (..., width) or (..., heads, d_head), leading axes as `prompts` and `back`.
            prompts: prompt numbers.
            back: how many tokens before the last changed one each token stands.
        """
        part = self.parts[address]
        values = part.values.to(old)
        row = prompts if len(values) > 1 else torch.zeros_like(prompts)
        width = values.shape[1]
        column = width - 1 - back if width > 1 else torch.zeros_like(back)
        taken = values[row, column.clamp(min=0)]
        if part.components is None:
            taken = taken.reshape(old.shape)
            return old + taken if self.kind == "steer" else taken
        chosen = torch.from_numpy(part.components).to(old.device)
        changed = old.clone()
        if SITES[address[1]] == "neuron":
            taken = taken[..., 0]
            changed[..., chosen] = changed[..., chosen] + taken if self.kind == "steer" else taken
        else:
            base = changed[..., chosen, :] if self.kind == "steer" else 0
            changed[..., chosen, :] = base + taken
        return changed

    def interventions(self, lengths: Sequence[int], where: Where) -> list[Intervention]:
        """The same as plain interventions on prompts of these lengths: the slow way.

        For prompts run whole; one intervention per component and, if `where` is a number, per
        token.
        """
        made = []
        for address, part in self.parts.items():
            numbers = [None] if part.components is None else part.components.tolist()
            for place, number in enumerate(numbers):
                component = Component(address[0], address[1], number)
                for back in [None] if where == "all" else range(int(where)):
                    positions = "all" if back is None else [n - 1 - back for n in lengths]
                    made.append(
                        Intervention(
                            name=self.kind,
                            component=component,
                            operation=self._operation(part, place, lengths),
                            positions=positions,
                        )
                    )
        return made

    def _operation(self, part: Part, place: int, lengths: Sequence[int]) -> Operation:
        def operation(old: Tensor, prompt: int, where: list[int]) -> Tensor:
            values = part.values[prompt if len(part.values) > 1 else 0].to(old)
            width = len(values)
            rows = [
                values[max(0, width - lengths[prompt] + p) if width > 1 else 0, place]
                for p in where
            ]
            new = torch.stack(rows).view_as(old)
            return old + new if self.kind == "steer" else new

        return operation


@reads_arguments
def make_ablation(
    model: LanguageModel,
    components: Sequence[str],
    kind: Kind = "zero",
    *,
    values: Mapping[Address, Tensor] | None = None,
    name: str = "",
) -> Ablation:
    """A set of components and their new values.

    Args:
        model: the model they belong to.
        components: labels such as L17H11, L26N6475, L5.resid_post; one label is a set of one.
        kind: "zero"; or "mean", "resample", "patch" and "steer", which take `values`.
        values: whole sites, as `site_values` gives them: (prompts or 1, positions or 1, ...).
        name: shown in tables; the kind and the components by default.

    Raises:
        InterpError: no components, one twice, an unknown kind, a site that cannot be set while
            decoding, a component the model lacks, or values missing.
    """
    components = listed(components)
    parts = [Component.parse(label) for label in components]
    if kind not in ("zero", "mean", "resample", "patch", "steer"):
        raise unknown("kind of ablation", kind, ("zero", "mean", "resample", "patch", "steer"))
    if not parts or len(set(parts)) < len(parts):
        raise InterpError(f"ablating {list(components)}", "none, or one twice", "give each once")
    grouped: dict[Address, list[int | None]] = {}
    for part in parts:
        if part.site not in CHANGEABLE:
            raise InterpError(f"ablating {part}", f"site {part.site}", f"use {CHANGEABLE}")
        model.require_component(part)
        grouped.setdefault((part.layer, part.site), []).append(part.index)
    made: dict[Address, Part] = {}
    for address, numbers in grouped.items():
        if len(numbers) > 1 and None in numbers:
            raise InterpError(f"ablating {list(components)}", "a site and a part of it", "choose")
        chosen = None if numbers[0] is None else np.array(numbers)
        if kind == "zero":
            width = _width(model, address[1], chosen is None)
            count = 1 if chosen is None else len(chosen)
            taken = torch.zeros(1, 1, count, width, dtype=model.dtype)
        elif values is None or address not in values:
            raise InterpError(
                f"{kind} ablation of L{address[0]}.{address[1]}", "no values", "give site_values"
            )
        else:
            taken = _of_parts(values[address], address[1], chosen)
        made[address] = Part(components=chosen, values=taken)
    return Ablation(
        name=name or f"{kind} {', '.join(components)}",
        kind=kind,
        components=tuple(map(str, parts)),
        parts=made,
    )


def decoding_changes(ablation: Ablation, ends: Tensor) -> Changes:
    """The ablation for `interp.engine.decode`; `ends[name]` is each row's last changed position."""

    def one(address: Address) -> Change:
        def change(value: Tensor, names: Tensor, positions: Tensor) -> Tensor:
            back = (ends[names][:, None] - positions).clamp(min=0)
            return ablation.new(address, value, names[:, None].expand_as(positions), back)

        return change

    return {address: one(address) for address in ablation.parts}


def random_like(
    model: LanguageModel, components: Sequence[str], draws: int, *, seed: int = 0
) -> list[list[str]]:
    """Different random sets matched in kind, layer and count: the null of a selection.

    See `interp.core.nulls.matched_components`. No set comes twice, so there are fewer than `draws`
    where fewer exist: three heads of a layer of six leave one other set.
    """
    parts, rng = (
        [Component.parse(label) for label in listed(components)],
        np.random.default_rng(seed),
    )
    found: dict[frozenset[Component], list[Component]] = {}
    for _ in range(20 * draws):
        if len(found) == draws:
            break
        drawn = matched_components(parts, model.n_layers, model.size, rng)
        found.setdefault(frozenset(drawn), drawn)
    return [[str(component) for component in drawn] for drawn in found.values()]


def _of_parts(whole: Tensor, site: str, chosen: np.ndarray | None) -> Tensor:
    if chosen is None:
        return whole.flatten(2)[:, :, None]
    taken = whole[:, :, torch.from_numpy(chosen)]
    return taken[..., None] if SITES[site] == "neuron" else taken
