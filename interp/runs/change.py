"""A change to a run: some components, the tokens it is in force at, and their new value.

Every way of changing a model is a `Change`: zero, mean, resample, patch, add, scale, project out,
sets of components, heads switched off or exchanged, steering. It is applied in two ways that give
the same numbers: as hooks, on any model (`interp.runs.hooks`), and as edits of the fast engine,
which computes only what can differ (`interp.runs.changed_runs`, `interp.runs.text_runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from interp.core.arguments import Positions, as_positions, each_of, listed, places_of
from interp.core.components import SINGLE, Component
from interp.core.errors import InterpError
from interp.core.positions import Mark, TokenizedPrompt
from interp.core.schema import Count, checked
from interp.engine.decode import CHANGEABLE, SiteChange, SiteChanges
from interp.models.language_model import Address, LanguageModel

Where = int | Literal["all"]
"""Which tokens: the last k of the text that is run, or all of them."""


class Tokens(NamedTuple):
    """Tokens that are changed: prompt number, position from 0, distance to the end; (n,) each.

    `back` is 0 for the last token of the text as it is run.
    """

    prompts: Tensor
    positions: Tensor
    back: Tensor


NewValue = Callable[[Tensor, Tokens], Tensor]
"""(old values, their tokens) -> new values, of the same shape: (n, width) for one component or a
whole site, (n, components, width) for several; the width of a neuron, or of a router's logit, is
1."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The new value of some components of one site, at some tokens.

    Attributes:
        name: what is done, for reports.
        layer, site: where.
        components: numbers of heads, neurons or experts; None for the whole site.
        value: the new value, see `NewValue`.
        positions: "all", slice(-k, None) for the last k tokens, or one token of each prompt
            (`interp.core.arguments.Positions`).
        by_token: a token's new value depends on its own old value alone; else the edit is applied
            through hooks only, to one prompt at a time.
        reads: the edit only reads the site: what `value` returns is not used.
        made_for: the prompts the value was made for, as token ids: text i must begin with prompt i.
            None for a value that does not depend on the prompts.
    """

    name: str
    layer: int
    site: str
    components: tuple[int, ...] | None = None
    value: NewValue
    positions: Positions | slice = "all"
    by_token: bool = True
    reads: bool = False
    made_for: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        where = self.positions
        if not isinstance(where, slice):
            object.__setattr__(self, "positions", as_positions(where))
        elif (where.stop, where.step) != (None, None) or not -(where.start or 0) > 0:
            found = "it is not the last tokens of a text"
            raise InterpError(f"{self.name} at {where}", found, "give slice(-k, None), k from 1")

    @property
    def address(self) -> Address:
        return self.layer, self.site

    @property
    def labels(self) -> list[str]:
        """The components by their labels, such as L1H2."""
        numbers = [None] if self.components is None else self.components
        return [str(Component(self.layer, self.site, number)) for number in numbers]

    @property
    def one_each(self) -> bool:
        """Whether one token of each prompt is changed."""
        return not isinstance(self.positions, slice) and self.positions != "all"

    def require(self, n: int) -> None:
        """Refuse, by an `InterpError`, a list of positions for another number of prompts than n."""
        if not isinstance(self.positions, str | int | slice):
            each_of(self.positions, n)

    def require_text(self, prompt: int, tokens: Sequence[int]) -> None:
        """Refuse, by an `InterpError`, a text that does not begin with the prompt of its number."""
        if self.made_for is None:
            return
        asked, n = f"{self.name} in prompt {prompt}", len(self.made_for)
        do = "run the prompts that it was made for, in their order"
        if prompt >= n:
            raise InterpError(asked, f"the change was made for n={n}", do)
        start = self.made_for[prompt]
        if tuple(tokens[: len(start)]) != start:
            raise InterpError(asked, "the text does not begin with the prompt it was made for", do)

    def applied(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """The site (n, ...) at some tokens with the new value in it, the old value, and the new."""
        old = self.read(x)
        new = self.value(old, tokens).to(old)
        if self.reads:
            return x, old, old
        if self.components is None:
            return new.reshape(x.shape), old, new
        out, chosen = x.clone(), list(self.components)
        out[:, chosen] = new.reshape(len(x), len(chosen), *x.shape[2:])
        return out, old, new

    def read(self, x: Tensor) -> Tensor:
        """The components' values, as `NewValue` takes them, in a site (n, ...) at some tokens."""
        if self.components is None:
            return x.flatten(1)
        several = len(self.components) > 1
        old = x[:, list(self.components) if several else self.components[0]]
        return old.unsqueeze(-1) if self.site in SINGLE else old


@dataclass(frozen=True, kw_only=True)
class Change:
    """Edits that are in force together; those of one site apply in their order.

    `change + other` is both.
    """

    name: str
    edits: tuple[Edit, ...]

    def __repr__(self) -> str:
        return f"Change({self.name!r:.100})"

    def __add__(self, other: Change) -> Change:
        return Change(name=f"{self.name}, {other.name}", edits=self.edits + other.edits)

    @property
    def components(self) -> tuple[str, ...]:
        """The labels of what is changed."""
        return tuple(label for edit in self.edits for label in edit.labels)

    @property
    def first_layer(self) -> int:
        """The lowest layer changed; nothing below it can differ."""
        return min(edit.layer for edit in self.edits)

    @property
    def addresses(self) -> list[Address]:
        """The sites changed, in the order in which a model computes them."""
        return in_order({edit.address for edit in self.edits})

    def at(self, positions: Positions | slice) -> Change:
        """The same at other tokens, see `Edit.positions`."""
        return replace(self, edits=tuple(replace(e, positions=positions) for e in self.edits))

    def last(self, where: Where) -> Change:
        """The same at the last `where` tokens of every text; at all of them for "all".

        Raises:
            InterpError: an edit that has positions of its own, or no count from 1 on.
        """
        if where == "all":
            return self
        where = checked(Count, where, "where, other than 'all'")
        if any(edit.positions != "all" for edit in self.edits):
            found = "it has positions of its own"
            raise InterpError(f"{self.name} at the last {where} tokens", found, "give one of them")
        return self.at(slice(-int(where), None))

    def require(self, prompts: Sequence[Sequence[int]], where: Where = "all") -> None:
        """Refuse, by an `InterpError`, prompts that the values or positions do not fit."""
        for edit in self.edits:
            edit.require(len(prompts))
            for number, tokens in enumerate(prompts):
                edit.require_text(number, tokens)
            if isinstance(edit.value, ValueTable):
                what = f"{self.name}: values of L{edit.layer}.{edit.site}"
                edit.value.require(what, len(prompts), where, edit.positions)

    def require_engine(self, what: str) -> None:
        """Refuse an edit that the fast engine cannot make.

        Raises:
            InterpError: no edits, a site that cannot be changed while decoding, or a new value
                that does not depend on the token's old value alone.
        """
        if not self.edits:
            raise InterpError(f"{what} by {self.name!r}", "it has no edits", "leave it out")
        for edit in self.edits:
            if edit.site not in CHANGEABLE or not edit.by_token or edit.reads:
                raise InterpError(
                    f"{what} {', '.join(edit.labels)} ({edit.name})",
                    f"the engine changes {', '.join(CHANGEABLE)}, token by token",
                    "use intervene(), which runs the whole model",
                )

    def resolved(
        self, prompts: Sequence[TokenizedPrompt], marks: Sequence[dict[str, Mark]] | None
    ) -> Change:
        """The same with every position name replaced by each prompt's token number.

        Raises:
            InterpError: a prompt without the position.
        """
        if not any(edit.one_each for edit in self.edits):
            return self
        edits = (
            replace(edit, positions=places_of(edit.positions, prompts, marks))  # type: ignore[arg-type]
            if edit.one_each
            else edit
            for edit in self.edits
        )
        return replace(self, edits=tuple(edits))

    def decoding(self, ends: Tensor, real: Tensor | None = None) -> SiteChanges:
        """The change for `interp.engine.decode`, at every token that is fed.

        Args:
            ends: (prompts,) the last position of each prompt that is changed.
            real: (rows, tokens) which tokens are no padding; all by default.
        """
        real = None if real is None or bool(real.all()) else real

        def one(address: Address) -> SiteChange:
            edits = [edit for edit in self.edits if edit.address == address]

            def change(value: Tensor, names: Tensor, positions: Tensor) -> Tensor:
                tokens = names[:, None].expand_as(positions), positions
                tokens = (*tokens, (ends[names][:, None] - positions).clamp(min=0))
                if real is None:
                    flat = Tokens(*(part.flatten() for part in tokens))
                    return _through(edits, value.flatten(0, 1), flat).view(value.shape)
                changed = value.clone()
                changed[real] = _through(edits, value[real], Tokens(*(t[real] for t in tokens)))
                return changed

            return change

        return {address: one(address) for address in self.addresses}


def changes_in(model: LanguageModel, changes: Change | Sequence[Change], what: str) -> list[Change]:
    """One or several changes as a list; the model has all their components.

    Raises:
        InterpError: something else than a change, or a layer, head or neuron that the model lacks.
    """
    found = listed(changes)
    for change in found:
        if not isinstance(change, Change):
            raise InterpError(
                f"{what} {change!r:.60}",
                f"{type(change).__name__}, which does not say what to do",
                "make a change of a component, such as zero('L17H11') or mean(...)",
            )
        for edit in change.edits:
            model.require_components(edit.layer, edit.site, edit.components or (None,))
    return found


def in_order(addresses: Iterable[Address]) -> list[Address]:
    """Sites that the engine can change, in the order in which a model computes them."""
    return sorted(addresses, key=lambda at: (at[0], CHANGEABLE.index(at[1])))


def changed_positions(edit: Edit, prompt: int, length: int) -> range:
    """The positions that an edit with resolved names changes in a prompt of this length.

    Raises:
        InterpError: the prompt is shorter than the slice.
    """
    if edit.positions == "all":
        return range(length)
    if isinstance(edit.positions, slice):
        if (last := -edit.positions.start) > length:
            asked = f"{edit.name} at the last {last} tokens of prompt {prompt}"
            raise InterpError(asked, f"it has {length}", "give longer prompts, or fewer tokens")
        return range(length)[edit.positions]
    at = int(edit.positions if isinstance(edit.positions, int) else edit.positions[prompt])
    return range(at, at + 1)


@dataclass(frozen=True, kw_only=True)
class ValueTable:
    """New values that are looked up: (prompts or 1, positions or 1, components, width).

    With several positions the last one belongs to the last token of the text. With `added`, the
    values are added to the old ones instead of replacing them.
    """

    values: Tensor
    added: bool = False

    def __call__(self, old: Tensor, tokens: Tokens) -> Tensor:
        values, (prompts, _, back) = self.values.to(old), tokens
        row = prompts if len(values) > 1 else torch.zeros_like(prompts)
        width = values.shape[1]
        column = (width - 1 - back).clamp(min=0) if width > 1 else torch.zeros_like(back)
        taken = values[row, column].reshape(old.shape)
        return old + taken if self.added else taken

    def require(
        self, what: str, prompts: int, where: Where, positions: Positions | slice = "all"
    ) -> None:
        """Refuse, by an `InterpError`, other numbers of prompts or fewer positions than changed."""
        rows, width = self.values.shape[:2]
        if isinstance(positions, slice):
            where = -positions.start
        short = width > 1 and (where == "all" or width < where)
        if rows not in (1, prompts) or short:
            raise InterpError(
                f"{what} over {rows} prompts and {width} positions",
                f"{prompts} prompts, where={where!r}",
                "give one value for all, or one for each prompt and each position changed",
            )


def _through(edits: Sequence[Edit], x: Tensor, tokens: Tokens) -> Tensor:
    for edit in edits:
        x, _, _ = edit.applied(x, tokens)
    return x
