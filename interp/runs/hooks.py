"""Changes applied through hooks, on any model: scoped, counted, reversible."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.core.arguments import marks_of, place_of, reads_arguments
from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.positions import Mark, TokenizedPrompt
from interp.core.prompts import Task
from interp.models.batches import Batch
from interp.models.language_model import Address, Hook, LanguageModel
from interp.runs.change import Change, Edit, Tokens, changed_positions, changes_in


@dataclass(kw_only=True)
class Fired:
    """How often an edit fired, and how large its changes were."""

    edit: Edit
    tokens: int = 0
    squared: float = 0.0

    @property
    def norm(self) -> float:
        """Root mean square, over changed tokens, of the L2 norm of the change."""
        return (self.squared / self.tokens) ** 0.5 if self.tokens else 0.0

    def __str__(self) -> str:
        what = f"{self.edit.name} {', '.join(self.edit.labels)}"
        return f"{what}: {self.tokens} tokens, change {self.norm:z.3f}"


@dataclass(kw_only=True)
class ChangeReport:
    """What the edits of one block did, in their order."""

    fired: list[Fired] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.fired))


@reads_arguments
@contextmanager
def intervene(
    model: LanguageModel, changes: Change | Sequence[Change], *, on: Task | None = None
) -> Iterator[ChangeReport]:
    """Every run of the model inside the block is changed; afterwards nothing is left behind.

    Changes of one component apply in their order. The model's lock is held, so other threads wait
    and do not see changed runs. `interp.generate` is changed too. A function that needs a plain run
    refuses to run inside the block, and says what to use instead.

    Positions are found in every run. During generation the text is run again for each new token, so
    "last" and negative numbers count from the end of the text so far: only its newest token is
    changed, and the tokens before it are plain again. "all" changes new tokens as well. A number
    from 0 on, and a name marked in `on`, are fixed tokens of the prompt.

    Args:
        model: the model to change.
        changes: one, or several in order; `interp.runs` lists the functions that make them.
        on: the task whose clean prompts are run or continued, if positions are names marked in it.

    With grouped-query attention the keys and values of a head are those of its whole group: a
    change of one k or v changes several heads, and the function warns.

    Yields:
        A report that fills as runs happen.

    Raises:
        InterpError: a site the model lacks, or (during a run) a position a prompt lacks.
    """
    report = ChangeReport()
    hooks: dict[Address, list[Hook]] = {}
    known = None
    if on is not None:
        prompts = [model.tokenize(pair.clean) for pair in on.pairs]
        known = list(zip(prompts, marks_of(on) or [], strict=True))
    for change in changes_in(model, changes, "intervening with"):
        for edit in change.edits:
            _warn_shared(model, edit)
            hook = EditHook(model=model, edit=edit, known=known)
            report.fired.append(hook.fired)
            hooks.setdefault(edit.address, []).append(hook)
    with model.hooked(hooks):
        yield report


@dataclass(kw_only=True)
class EditHook:
    """An edit as a hook of whole runs; cached generation applies it to parts of a text.

    `known` holds the prompts of a task and the positions marked in them.
    """

    model: LanguageModel
    edit: Edit
    known: list[tuple[TokenizedPrompt, dict[str, Mark]]] | None = None
    fired: Fired = field(init=False)

    def __post_init__(self) -> None:
        self.fired = Fired(edit=self.edit)

    def __call__(self, value: Tensor, batch: Batch) -> Tensor:
        """The site with the components changed in every row."""
        self.edit.require(batch.total)
        changed = value.clone()
        for row, prompt in enumerate(batch.prompts.tolist()):
            first, length = int(batch.first[row]), int(batch.lengths[row])
            tokens = batch.tokens[row, first : first + length].tolist()
            where = self.places(prompt, tokens)
            columns = [batch.column(row, p) for p in where]
            self.change(changed, row, prompt, where, columns, length)
        return changed

    def change(
        self,
        value: Tensor,
        row: int,
        prompt: int,
        where: Sequence[int],
        columns: list[int],
        length: int,
    ) -> None:
        """Change, in place, the tokens of a row of this length that stand in these columns."""
        by_token = value[row].transpose(0, 1) if self.edit.site == "pattern" else value[row]
        positions = torch.tensor(list(where), dtype=torch.long, device=value.device)
        tokens = Tokens(torch.full_like(positions, prompt), positions, length - 1 - positions)
        by_token[columns], old, new = self.edit.applied(by_token[columns], tokens)
        self.fired.tokens += len(where)
        self.fired.squared += float((new - old).detach().float().pow(2).sum())

    def places(self, prompt: int, tokens: Sequence[int]) -> Sequence[int]:
        """The positions changed in a text that begins with a prompt of this number.

        Raises:
            InterpError: a position that the text lacks, a prompt beyond those given, or a text
                that does not begin with the prompt the edit was made for.
        """
        self.edit.require_text(prompt, tokens)
        where, label = self.edit.positions, f"prompt {prompt}"
        if isinstance(where, slice) or where == "all":
            return changed_positions(self.edit, prompt, len(tokens))
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


def _warn_shared(model: LanguageModel, edit: Edit) -> None:
    group = model.n_heads // model.n_kv_heads
    if SITES[edit.site] != "kv_head" or edit.components is None or group == 1 or edit.reads:
        return
    for number, label in zip(edit.components, edit.labels, strict=True):
        first = number * group
        warnings.warn(
            f"{label} is shared by query heads {first} to {first + group - 1} of layer "
            f"{edit.layer}: all of them change; for one head alone, edit its z",
            stacklevel=4,  # behind contextlib's frame
        )
