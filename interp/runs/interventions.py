"""Changes to a run: what is replaced, by what, where; scoped, counted, reversible."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.core.arguments import (
    Positions,
    as_positions,
    each_of,
    listed,
    marks_of,
    place_of,
    reads_arguments,
    texts_of,
)
from interp.core.components import SITES, Component
from interp.core.errors import InterpError
from interp.core.positions import Mark, Prompt, TokenizedPrompt
from interp.core.prompts import Task
from interp.models.batches import Batch
from interp.models.language_model import Address, Hook, LanguageModel

Operation = Callable[[Tensor, int, list[int]], Tensor]
"""(old values, prompt number, positions) -> new values; both (positions, width), and a neuron's
width is 1."""


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """An operation on one component at some positions of every prompt.

    Made by `zero`, `mean`, `resample`, `patch`, `add`, `scale` and `project_out`, whose
    `positions` are "all" or one token of each prompt (`interp.core.arguments.Positions`). `reads`:
    it only looks, and changes nothing. `by_token`: a token's new value depends on its own old value
    alone, so that cached generation may apply it to a few tokens at a time.
    """

    name: str
    component: Component
    operation: Operation
    positions: Positions
    reads: bool = False
    by_token: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", as_positions(self.positions))

    def require(self, n: int) -> None:
        """Refuse a list of positions for another number of prompts than n."""
        if not isinstance(self.positions, str | int):
            each_of(self.positions, n)


@dataclass(kw_only=True)
class Fired:
    """How often an intervention fired, and how large the changes were."""

    intervention: Intervention
    tokens: int = 0
    squared: float = 0.0

    @property
    def norm(self) -> float:
        """Root mean square, over changed tokens, of the L2 norm of the change."""
        return (self.squared / self.tokens) ** 0.5 if self.tokens else 0.0

    def __str__(self) -> str:
        what = self.intervention
        return f"{what.name} {what.component}: {self.tokens} tokens, change {self.norm:.3f}"


@dataclass(kw_only=True)
class Report:
    """What the interventions of one block did, in their order."""

    fired: list[Fired] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.fired))


@reads_arguments
def zero(component: str, *, positions: Positions = "all") -> Intervention:
    """Replace a component by zero."""
    return _make("zero", component, lambda old, prompt, where: torch.zeros_like(old), positions)


@reads_arguments
def scale(component: str, factor: float, *, positions: Positions = "all") -> Intervention:
    """Multiply a component by a factor."""
    return _make("scale", component, lambda old, prompt, where: old * factor, positions)


@reads_arguments
def add(
    component: str, vector: Tensor, *, coefficient: float = 1.0, positions: Positions = "all"
) -> Intervention:
    """Add `coefficient * vector` to a component (steering).

    Raises:
        InterpError: a vector that is not finite or (during a run) of another width.
    """
    if not bool(vector.isfinite().all()):
        raise InterpError(f"a vector for {component}", "not finite", "give finite numbers")

    def operation(old: Tensor, prompt: int, where: list[int]) -> Tensor:
        return old + coefficient * _fitting(vector, old, component)

    return _make("add", component, operation, positions)


@reads_arguments
def project_out(component: str, direction: Tensor, *, positions: Positions = "all") -> Intervention:
    """Remove a direction: x - (x . r) r with r of length one.

    Raises:
        InterpError: the direction is zero.
    """
    length = float(direction.norm())
    if not 0 < length < float("inf"):
        found = f"a direction of length {length:g}"
        raise InterpError(f"projecting out of {component}", found, "give a finite one, not zero")

    def operation(old: Tensor, prompt: int, where: list[int]) -> Tensor:
        unit = _fitting(direction / length, old, component)
        return old - (old @ unit)[:, None] * unit

    return _make("project_out", component, operation, positions)


@reads_arguments
def mean(
    model: LanguageModel,
    component: str,
    reference: Task | Prompt | Sequence[Prompt],
    *,
    pooled: bool = True,
    positions: Positions = "all",
) -> Intervention:
    """Replace a component by its mean over a reference set of prompts (a task: its clean ones).

    Args:
        model: the model the means are taken on.
        component: which one; not a pattern, whose keys differ between prompts.
        reference: the prompts averaged over.
        pooled: one vector, the mean over every real token; else one per position, over the
            prompts that have it.
        positions: where it is replaced.

    Raises:
        InterpError: a pattern, or (per position) a prompt longer than every reference.
    """
    part = Component.parse(component)
    if part.site == "pattern":
        raise InterpError("the mean of pattern", "keys differ between prompts", "use z")
    values = component_values(model, part, reference)
    if pooled:
        vector = torch.cat(values).mean(0)
        return _make(
            "mean", component, lambda old, prompt, where: vector.expand_as(old).clone(), positions
        )
    longest = max(len(value) for value in values)
    table = torch.stack(
        [torch.stack([v[p] for v in values if len(v) > p]).mean(0) for p in range(longest)]
    )

    def operation(old: Tensor, prompt: int, where: list[int]) -> Tensor:
        if where and max(where) >= longest:
            raise InterpError(
                f"the mean of {component} at position {max(where)}",
                f"the reference prompts have at most {longest} tokens",
                "use pooled=True or longer references",
            )
        return table[where]

    return _make("mean", component, operation, positions)


@reads_arguments
def patch(
    model: LanguageModel,
    component: str,
    source: Task | Prompt | Sequence[Prompt],
    *,
    positions: Positions = "all",
) -> Intervention:
    """Replace a component by its value in another run: prompt i takes it from `source[i]`.

    A task stands for its clean prompts, one text for the source of prompt 0 alone.

    Raises:
        InterpError: a source prompt is too short.
    """
    values = component_values(model, Component.parse(component), source)
    return _make("patch", component, _taken(component, values), positions)


@reads_arguments
def resample(
    model: LanguageModel,
    component: str,
    reference: Task | Prompt | Sequence[Prompt],
    *,
    n: int,
    seed: int = 0,
    positions: Positions = "all",
) -> Intervention:
    """Replace a component by its value on a reference prompt drawn for each of `n` prompts."""
    texts = texts_of(reference)
    if not texts:
        raise InterpError(f"resampling {component}", "no reference prompts", "give at least one")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(texts), (n,), generator=generator).tolist()
    values = component_values(model, Component.parse(component), texts)
    return _make("resample", component, _taken(component, [values[i] for i in drawn]), positions)


def component_values(
    model: LanguageModel, component: Component, prompts: Task | Prompt | Sequence[Prompt]
) -> list[Tensor]:
    """A component's value at every token of every prompt: (positions, width) each."""
    tokens = [model.tokenize(prompt).tokens for prompt in texts_of(prompts)]
    kept: dict[int, Tensor] = {}

    def hook(value: Tensor, batch: Batch) -> Tensor:
        for row, prompt in enumerate(batch.prompts.tolist()):
            columns = [batch.column(row, p) for p in range(int(batch.lengths[row]))]
            kept[prompt] = _slice(value, component, row, columns).detach().clone()
        return value

    model.last_logits(tokens, hooks={(component.layer, component.site): [hook]})
    return [kept[i] for i in range(len(tokens))]


@reads_arguments
@contextmanager
def intervene(
    model: LanguageModel,
    interventions: Intervention | Sequence[Intervention],
    *,
    on: Task | None = None,
) -> Iterator[Report]:
    """Every run of the model inside the block is changed; afterwards nothing is left behind.

    Interventions on one component apply in their order. The model's lock is held, so that other
    threads wait instead of seeing changed runs. `interp.generate` obeys too. What would read or
    keep a plain run refuses to run inside the block, and says what to use instead.

    Positions are found anew in every run. A text that grows is run again for each new token, so
    "last" and negative numbers then mean the end of the text so far: only its newest token is
    changed, the tokens before it are plain again. "all" changes new tokens as well; a number from
    0 on, and a name marked in `on`, stay where they are in the prompt.

    Args:
        model: the model to change.
        interventions: what to do, where; one, or several in order.
        on: the task whose clean prompts will be run or continued, if positions are names marked
            in it.

    With grouped-query attention the keys and values of a head are those of its whole group: a
    change of one k or v changes several heads, and is warned of.

    Yields:
        A report that fills as runs happen.

    Raises:
        InterpError: a site the model lacks, or (during a run) a position a prompt lacks.
    """
    report = Report()
    hooks: dict[Address, list[Hook]] = {}
    known = None
    if on is not None:
        prompts = [model.tokenize(pair.clean) for pair in on.pairs]
        known = list(zip(prompts, marks_of(on) or [], strict=True))
    for intervention in listed(interventions):
        if not isinstance(intervention, Intervention):
            raise InterpError(
                f"intervening with {intervention!r:.60}",
                f"{type(intervention).__name__}, which does not say what to do",
                "make an intervention of a component, such as zero('L17H11') or mean(...)",
            )
        model.require_component(intervention.component)
        _warn_shared(model, intervention)
        hook = InterventionHook(model=model, intervention=intervention, known=known)
        report.fired.append(hook.fired)
        hooks.setdefault((intervention.component.layer, intervention.component.site), []).append(
            hook
        )
    with model.hooked(hooks):
        yield report


@dataclass(kw_only=True)
class InterventionHook:
    """An intervention as a hook of hooked runs; cached generation applies it to parts of a text.

    `known` holds the prompts of a task and the positions marked in them.
    """

    model: LanguageModel
    intervention: Intervention
    known: list[tuple[TokenizedPrompt, dict[str, Mark]]] | None = None
    fired: Fired = field(init=False)

    def __post_init__(self) -> None:
        self.fired = Fired(intervention=self.intervention)

    def __call__(self, value: Tensor, batch: Batch) -> Tensor:
        """The site with the component changed in every row."""
        self.intervention.require(batch.total)
        changed = value.clone()
        for row, prompt in enumerate(batch.prompts.tolist()):
            first, length = int(batch.first[row]), int(batch.lengths[row])
            tokens = batch.tokens[row, first : first + length].tolist()
            where = self.places(prompt, tokens)
            self.change(changed, row, prompt, where, [batch.column(row, p) for p in where])
        return changed

    def change(
        self, value: Tensor, row: int, prompt: int, where: list[int], columns: list[int]
    ) -> None:
        """Change, in place, the tokens of a row that stand in these columns."""
        component = self.intervention.component
        old = _slice(value, component, row, columns)
        new = self.intervention.operation(old, prompt, where).to(old)
        self.fired.tokens += len(where)
        self.fired.squared += float((new - old).detach().float().pow(2).sum())
        _write(value, component, row, columns, new)

    def places(self, prompt: int, tokens: Sequence[int]) -> list[int]:
        """The positions changed in a text that begins with a prompt of this number.

        Raises:
            InterpError: a position that the text lacks, or a prompt beyond those given.
        """
        where, label = self.intervention.positions, f"prompt {prompt}"
        if isinstance(where, str) and where == "all":
            return list(range(len(tokens)))
        if not isinstance(where, str | int):
            if prompt >= len(where):
                raise InterpError(
                    f"the position of {label}", f"{len(where)} given", "give one each"
                )
            where = where[prompt]
        marks: dict[str, Mark] = {}
        if self.known is not None and isinstance(where, str):
            start, marks = self.known[prompt] if prompt < len(self.known) else (None, {})
            if start is None or start.tokens != tuple(tokens[: len(start.tokens)]):
                raise InterpError(
                    f"position {where!r} of {label}",
                    "it is not that prompt of the task given as on=",
                    "run the task's own clean prompts, in order",
                )
            if where in marks:
                return [place_of(where, start, marks, label)]
        if isinstance(where, str) and where not in ("last", "first"):
            text = self.model.tokenize(tuple(tokens))
        else:
            text = TokenizedPrompt(text=None, tokens=tuple(tokens), strings=(), spans=None)
        return [place_of(where, text, marks, label)]


def _warn_shared(model: LanguageModel, intervention: Intervention) -> None:
    part, group = intervention.component, model.n_heads // model.n_kv_heads
    shared = SITES[part.site] == "kv_head" and part.index is not None and group > 1
    if part.index is not None and shared and not intervention.reads:
        first = part.index * group
        warnings.warn(
            f"{part} is shared by query heads {first} to {first + group - 1} of layer "
            f"{part.layer}: all of them change; for one head alone, edit its z",
            stacklevel=4,  # behind contextlib's frame
        )


def _slice(value: Tensor, component: Component, row: int, columns: list[int]) -> Tensor:
    """(positions, width) of a component in one row of a batch."""
    site, index = component.site, component.index
    if site == "pattern":
        heads = value[row, :, columns].transpose(0, 1)
        return heads.flatten(1) if index is None else heads[:, index]
    chosen = value[row, columns]
    if SITES[site] == "neuron":
        return chosen if index is None else chosen[:, index, None]
    if SITES[site] is None:
        return chosen
    return chosen.flatten(1) if index is None else chosen[:, index]


def _write(value: Tensor, component: Component, row: int, columns: list[int], new: Tensor) -> None:
    site, index = component.site, component.index
    if site == "pattern":
        if index is None:
            value[row, :, columns] = new.view(len(columns), value.shape[1], -1).transpose(0, 1)
        else:
            value[row, index, columns] = new
    elif SITES[site] is None or index is None:
        value[row, columns] = new.view(len(columns), *value.shape[2:])
    elif SITES[site] == "neuron":
        value[row, columns, index] = new[:, 0]
    else:
        value[row, columns, index] = new


def _make(name: str, component: str, operation: Operation, positions: Positions) -> Intervention:
    return Intervention(
        name=name,
        component=Component.parse(component),
        operation=operation,
        positions=positions,
        by_token=True,
    )


def _fitting(vector: Tensor, old: Tensor, component: str) -> Tensor:
    if vector.shape != old.shape[1:]:
        raise InterpError(
            f"a vector for {component}",
            f"shape {tuple(vector.shape)}, the component has {tuple(old.shape[1:])}",
            "give one number per dimension",
        )
    return vector.to(old)


def _taken(component: str, values: list[Tensor]) -> Operation:
    def operation(old: Tensor, prompt: int, where: list[int]) -> Tensor:
        asked = f"{component} of prompt {prompt} from another run"
        if prompt >= len(values):
            found = f"there are sources for {len(values)} prompts only"
            raise InterpError(asked, found, "give one source for each prompt")
        if where and max(where) >= (length := len(values[prompt])):
            raise InterpError(
                asked,
                f"token {max(where)}, counted from 0, is to be replaced; its source has {length} "
                "tokens",
                "give a source at least as long as the text, what is generated included, or "
                "positions that the source has, such as positions=0",
            )
        new = values[prompt][where]
        if new.shape[-1] < old.shape[-1]:
            # Patterns of a shorter source: no attention to the keys it does not have.
            new = torch.nn.functional.pad(new, (0, old.shape[-1] - new.shape[-1]))
        return new[..., : old.shape[-1]]

    return operation
