"""Changes written as rows of a table: what is done to which component, how strongly, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.core.components import Component
from interp.core.errors import InterpError, unknown
from interp.core.schema import CheckedSettings, Real
from interp.models.language_model import LanguageModel
from interp.runs.change import NewValue, Tokens
from interp.runs.kinds import random_like

How = Literal["zero", "mean", "patch", "scale", "steer", "project out"]
"""What replaces a component's value x. With s the strength, d the component's value at the last
token of the prompt minus that of the foil or a kept direction, and u = d / |d|:

    zero, mean, patch:  x + s (new - x); new is 0, the mean over the tokens of the prompt and the
                        foil, or the value at the same token of the foil
    scale:              s x
    steer:              x + s d
    project out:        x - s (x . u) u
"""

When = Literal["all tokens", "last token", "generated tokens"]
"""The tokens changed: those of the prompt and those generated; the last token of the prompt; or
those generated."""

HOWS: tuple[str, ...] = get_args(How)
WHENS: tuple[str, ...] = get_args(When)
ALONG = ("steer", "project out")
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""The sites that a kept direction fits, whole."""
FREE = ("zero", "scale")
"""The changes that read no values."""


@dataclass(frozen=True, kw_only=True)
class PlannedChange(CheckedSettings):
    """A change of one component: what is done, how strongly, when, and whether it is on.

    `direction` names a kept direction (`interp.results.kept_directions`) that a whole site is moved
    along; "" is the difference of prompt and foil. `str` writes it as "L20H0, zero, 1, all tokens",
    and `parse` reads that.

    Raises:
        InterpError: no label of a component, an unknown `how` or `when`, no finite strength, or a
            direction for what is not moved along one.
    """

    component: str
    how: str = "zero"
    strength: Real = 1.0
    when: str = "all tokens"
    direction: str = ""
    on: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "component", str(Component.parse(self.component)))
        for name, value, known in (("how", self.how, HOWS), ("when", self.when, WHENS)):
            if value not in known:
                raise unknown(f"{name} of the change of {self.component}:", value, known)
        if self.direction and not (self.along and self.part.site in STREAM):
            found = f"the direction {self.direction}, which fits only whole sites of the stream"
            raise InterpError(f"{self.how} {self.component}", found, "steer L15.resid_post")

    def __str__(self) -> str:
        more = (f", {self.direction}" if self.direction else "") + ("" if self.on else ", off")
        return f"{self.component}, {self.how}, {self.strength:.12g}, {self.when}{more}"

    @classmethod
    def parse(cls, text: str) -> PlannedChange:
        """The inverse of `str`; what is left out at the end has its usual value.

        Raises:
            InterpError: see the class, or a part too many.
        """
        parts = [part.strip() for part in str(text).split(",")]
        on = parts[-1] != "off"
        parts = parts if on else parts[:-1]
        names = ("component", "how", "strength", "when", "direction")
        given: dict[str, Any] = dict(zip(names, parts))  # noqa: B905
        try:
            if len(parts) > 5:
                raise ValueError
            if "strength" in given:
                given["strength"] = float(given["strength"])
        except ValueError:
            raise InterpError(
                f"the change {text!r:.80}",
                "not a component, what is done to it, a number and the tokens",
                "write 'L20H0, zero' or 'L5.mlp_out, scale, 0.5, last token'",
            ) from None
        return cls(on=on, **given)

    @property
    def part(self) -> Component:
        """The component."""
        return Component.parse(self.component)

    @property
    def along(self) -> bool:
        """Whether it moves a whole site along a direction."""
        return self.how in ALONG and self.part.index is None

    def require(self, prompt: Sequence[int], foil: Sequence[int] | None) -> None:
        """Refuse, by an `InterpError`, a foil that is missing or that does not fit."""
        if self.how not in ("patch", *ALONG) or self.direction:
            return
        if foil is None:
            do = "give a foil: another prompt, from which the value is taken"
            raise InterpError(f"the change {self}", "there is no foil", do)
        if self.how == "patch" and len(foil) != len(prompt):
            found = f"the prompt has {len(prompt)} tokens, the foil {len(foil)}"
            raise InterpError(f"the change {self}", found, "write a foil of as many tokens")
        if self.how == "patch" and self.when == "generated tokens":
            found = "the foil has no value for generated tokens"
            raise InterpError(f"the change {self}", found, "patch 'all tokens' of the prompt")

    def value(
        self, length: int, dose: float, values: Sequence[Tensor], along: Tensor | None
    ) -> NewValue:
        """The new value x + dose (new - x) at the tokens that are changed.

        Args:
            length: tokens of the prompt.
            dose: 1 for the change as it is written.
            values: the component's value after the prompt and the foil, (tokens, width) each;
                empty for the changes in `FREE`.
            along: another direction than the difference of prompt and foil.
        """
        start = {"all tokens": 0, "last token": length - 1}.get(self.when, length)
        stop = length if self.when == "last token" or self.how == "patch" else None
        share = dose if self.how == "scale" else dose * self.strength
        target = self._target(values, along)

        def value(old: Tensor, tokens: Tokens) -> Tensor:
            here = tokens.positions >= start
            if stop is not None:
                here &= tokens.positions < stop
            out, x = old.clone(), old[here]
            new = target(x, tokens.positions[here]).to(old)
            out[here] = new if share == 1 else x + share * (new - x)
            return out

        return value

    def _target(
        self, values: Sequence[Tensor], along: Tensor | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(values, positions) -> the value that a change of strength 1 gives."""
        if self.how == "zero":
            return lambda x, at: torch.zeros_like(x)
        if self.how == "scale":
            return lambda x, at: self.strength * x
        if self.how == "mean":
            mean = torch.cat(list(values)).mean(0)
            return lambda x, at: mean.to(x).expand_as(x)
        if self.how == "patch":
            return lambda x, at: values[1].to(x)[at]
        d = values[0][-1] - values[1][-1] if along is None else along
        if self.how == "steer":
            return lambda x, at: x + d.to(x)
        unit = torch.nn.functional.normalize(d.double(), dim=0)
        return lambda x, at: x - (x @ unit.to(x))[:, None] * unit.to(x)


def random_rows(
    model: LanguageModel, rows: Sequence[PlannedChange], draws: int, seed: int
) -> Iterator[tuple[PlannedChange, ...]]:
    """The same changes of random components.

    Heads and neurons are drawn from the same layers, whole sites from other layers. A whole site
    that is moved along a direction keeps its place.
    """
    groups: dict[tuple[int, str], dict[str, None]] = {}
    for row in rows:
        if not row.along:
            groups.setdefault((row.part.layer, row.part.site), {})[row.component] = None
    # Drawn components come in this order.
    labels = [label for group in groups.values() for label in group]
    sets = random_like(model, labels, draws, seed=seed) if labels else [[]] * draws
    for drawn in sets:
        partner = dict(zip(labels, drawn, strict=True))
        yield tuple(
            row if row.along else replace(row, component=partner[row.component]) for row in rows
        )
