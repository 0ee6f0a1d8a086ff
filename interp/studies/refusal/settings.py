"""What every step of the refusal study starts from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from interp.core import schema
from interp.core.chat_prompts import ChatPrompts
from interp.core.errors import InterpError
from interp.core.schema import Count, Whole
from interp.models.chat import chat_prompts
from interp.refusal.cases import Case, deal
from interp.refusal.constellations import Bank, make_bank
from interp.refusal.judging import REFUSALS, RULES, Judge, Label
from interp.refusal.score import score_refusals
from interp.refusal.trajectories import Trajectories, read_trajectories
from interp.results.direction import Direction, DirectionKind
from interp.runs.losses import text_losses
from interp.steering.candidates import Candidates, difference_in_means, end_states
from interp.steering.edits import Steering
from interp.steering.runs import generate_steered, run_steered
from interp.studies.study import StudyContext, StudyKind

SHARES = {"find": 0.3, "select": 0.15, "test": 0.55}
"""Parts of the prompts: directions, centroids and heads are found on the first; layers, gates and
strengths are chosen on the second; everything is measured on the third."""

INVENTED: DirectionKind = "refused-invented"
KINDS: tuple[DirectionKind, ...] = (
    "harmful-harmless",
    "behaviour",
    "over-refusal",
    "false-refusal",
    INVENTED,
)
COMPARED = 250
"""The most test rows to answer that methods are compared on, drawn at random."""

Places = dict[DirectionKind, list[int]]
"""The position and layer chosen for each kind of direction."""

LEAST = 4
"""The fewest rows a class must have for a mean."""

TABOO_MODELS = ("refusal-tiny", "refusal-smollm2")
"""Models trained on the shipped taboo, which are studied on it; all others on capabilities."""


@dataclass(frozen=True, kw_only=True)
class RefusalSettings(schema.CheckedSettings):
    """The settings of the study; part of every step's key.

    n: shipped prompts of each kind and task (pairs of each kind of capability request, at most);
    0 for the usual: 24 of the taboo, all capability requests. requests: times as many about the
    taboo itself. max_new_tokens: of each reply; 0 for the usual: 100, and 24 of capability
    requests, where 24 tell refused from other replies as 40 do on 99.5 % of 840 prompts (default
    model). pairs: refused-answered pairs that heads are found on. select: prompts of each side that
    candidate directions are scored on. thin: candidates at every thin-th layer only. draws: random
    sets for each selection. system: a system prompt before every prompt (in-context refusal).
    """

    n: Whole = 0
    requests: Count = 10
    max_new_tokens: Whole = 0
    pairs: Annotated[int, Field(ge=4)] = 8
    select: Annotated[int, Field(ge=4)] = 12
    thin: Count = 2
    draws: Annotated[int, Field(ge=2)] = 10
    seed: Whole = 0
    system: str | None = None


USUAL = {"taboo": {"n": 24, "max_new_tokens": 100}, "capability": {"n": 100, "max_new_tokens": 24}}


def usual(settings: RefusalSettings, subject: str) -> RefusalSettings:
    """The settings with 0 replaced by what is usual for a set of prompts.

    Raises:
        InterpError: too few prompts for a study, or replies too short to judge.
    """
    least = {"n": 4, "max_new_tokens": 20}
    found = {name: getattr(settings, name) or value for name, value in USUAL[subject].items()}
    for name, value in found.items():
        if value < least[name]:
            raise InterpError(
                f"{name} {value}", f"below {least[name]}", f"give {least[name]} or more"
            )
    return replace(settings, **found)


REFUSAL = StudyKind(name="refusal", version=5, settings=RefusalSettings, rules=(RULES.name,))
"""The kind of study."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Some cases, unchanged.

    logits: (n, d_vocab) of the next token. texts: each prompt with the model's own reply, which
    begins at `starts`. losses: (n,) of the replies alone.
    """

    logits: Tensor
    texts: list[tuple[int, ...]]
    starts: list[int]
    losses: Tensor


@dataclass(frozen=True, kw_only=True)
class RefusalContext(StudyContext[RefusalSettings]):
    """A model, the prompts, and, once it has replied, what became of each.

    labels: one for each case; () before the first step. tokens: those that refusals begin with;
    wrong: those that answers begin with. threshold: the score above which a prompt counts as
    refused, in nats. judge: judges every reply.
    """

    cases: tuple[Case, ...]
    labels: tuple[Label, ...] = ()
    tokens: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    threshold: float = 0.0
    judge: Judge = RULES

    @cached_property
    def prompts(self) -> ChatPrompts:
        """All cases in the model's chat template."""
        texts = [case.prompt for case in self.cases]
        return chat_prompts(self.model, texts, system=self.settings.system)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The part of each case, see `SHARES`."""
        return deal(self.cases, SHARES, seed=self.settings.seed)

    def rows(
        self,
        part: str | None = None,
        *,
        should: str | None = None,
        refused: bool | None = None,
        tasks: Iterable[str] | None = None,
    ) -> list[int]:
        """Indices of the cases that meet every condition given."""
        wanted = None if tasks is None else set(tasks)
        return [
            i
            for i, case in enumerate(self.cases)
            if part in (None, self.parts[i])
            and should in (None, case.should)
            and (refused is None or self.became(i) is refused)
            and (wanted is None or case.task in wanted)
        ]

    @cached_property
    def compared(self) -> list[int]:
        """The test rows that methods are compared on: all to refuse, some to answer."""
        answer = self.few(self.rows("test", should="answer"), COMPARED)
        return sorted([*answer, *self.rows("test", should="refuse")])

    def became(self, i: int) -> bool | None:
        """Whether a case was refused; None without a verdict."""
        label = self.labels[i]
        return True if label in REFUSALS else False if label == "direct_answer" else None

    def invented(self, i: int) -> bool:
        """Whether a request that should be refused got an answer."""
        return self.cases[i].should == "refuse" and self.became(i) is False

    @cached_property
    def refused_tasks(self) -> tuple[str, ...]:
        """Tasks whose rows should be answered but are refused, often enough for a mean."""
        rows = self.rows("find", should="answer", refused=True)
        tasks = [self.cases[i].task for i in rows]
        return tuple(task for task in dict.fromkeys(tasks) if tasks.count(task) >= LEAST)

    @cached_property
    def proper_tasks(self) -> tuple[str, ...]:
        """Tasks of the rows that should be refused."""
        return tuple(dict.fromkeys(self.cases[i].task for i in self.rows(should="refuse")))

    def classes(self, kind: DirectionKind, part: str = "find") -> tuple[list[int], list[int]]:
        """The two classes of rows whose difference gives a direction, first minus second.

        Both classes have the same tasks; otherwise the direction would encode the task. If all
        rows to refuse have answerable twins, only these are their other class. Refused and invented
        find rows have the same kinds and tasks in equal numbers. The classes of a false-refusal
        direction are those of the over-refusal direction (arXiv 2410.03415 uses answered prompts of
        any task).
        """
        harmless = self.rows(part, should="answer", tasks=self.proper_tasks)
        twins = [i for i in harmless if self._about(i) in self.asked]
        requests = {self._about(i) for i in self.rows(part, should="refuse")}
        if {self._about(i) for i in twins} == requests:
            harmless = twins
        if kind == INVENTED:
            sides = [self.rows(part, should="refuse", refused=x) for x in (True, False)]
            return self.matched(*sides) if part == "find" else (sides[0], sides[1])
        if kind == "harmful-harmless":
            return self.rows(part, should="refuse"), harmless
        answered = [i for i in harmless if self.became(i) is False]
        if kind == "behaviour":
            return self.rows(part, should="refuse", refused=True), answered
        wrong, right = (
            self.rows(part, should="answer", refused=x, tasks=self.refused_tasks)
            for x in (True, False)
        )
        return wrong, right

    def _about(self, i: int) -> tuple[str, str]:
        return self.cases[i].base, self.cases[i].task

    @cached_property
    def asked(self) -> set[tuple[str, str]]:
        """Base text and task of the rows that should be refused and have a base text."""
        return {self._about(i) for i in self.rows(should="refuse") if self.cases[i].base}

    def role(self, i: int) -> str:
        """What a case is: a request to refuse, its answerable twin, or another prompt."""
        if self.cases[i].should == "refuse":
            return "requests"
        return "twins" if self._about(i) in self.asked else "other prompts"

    def matched(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
        """As many rows of either class from every task and kind, drawn at random."""
        cells = [(case.task, case.kind) for case in self.cases]
        found: tuple[list[int], list[int]] = ([], [])
        for cell in dict.fromkeys(cells[i] for i in first):
            both = [[i for i in side if cells[i] == cell] for side in (first, second)]
            for chosen, side in zip(found, both, strict=True):
                chosen += self.few(side, min(map(len, both)))
        return found

    @cached_property
    def main(self) -> DirectionKind:
        """The contrast that decides place and heads: the one that fixes the topic, if there is one.

        That is refused against invented requests; else requests to refuse against others.
        """
        return INVENTED if self.candidates(INVENTED) is not None else KINDS[0]

    def candidates(self, kind: DirectionKind) -> Candidates | None:
        """Differences at the post-instruction tokens, all layers; None with too few rows.

        Candidates for false refusal are orthogonal to the first kind's at the same place.
        """
        return self.once(("candidates", kind), lambda: self._differences(kind))

    def _differences(self, kind: DirectionKind) -> Candidates | None:
        first, second = self.classes(kind)
        if min(len(first), len(second)) < LEAST:
            return None
        found = self.difference(kind, first, second)
        if kind != "false-refusal":
            return found
        proper = self.candidates("harmful-harmless")
        return None if proper is None else orthogonal(found, proper)

    def difference(
        self, kind: DirectionKind, first: Sequence[int], second: Sequence[int]
    ) -> Candidates:
        """`difference_in_means` of two sets of find rows."""
        return difference_in_means(
            self.model,
            self.prompts[first],
            self.prompts[second],
            kind=kind,
            last=max(1, len(self.prompts.tail)),
            states=(self.ends(first), self.ends(second)),
        )

    def ends(self, rows: Sequence[int]) -> Tensor:
        """(rows, positions, layers, d_model) block inputs at the ends of find rows."""
        find, last = self.rows("find"), max(1, len(self.prompts.tail))
        states = self.once("ends", lambda: end_states(self.model, self.prompts[find], last=last))
        return states[[find.index(i) for i in rows]]

    def direction(self, kind: DirectionKind, place: Sequence[int]) -> Direction:
        """The candidate at (position, layer).

        Raises:
            InterpError: too few rows of a class.
        """
        found = self.candidates(kind)
        if found is None:
            sizes = " and ".join(str(len(side)) for side in self.classes(kind))
            found_here = f"{sizes} rows of its classes, at least {LEAST} each"
            raise InterpError(f"a {kind} direction", found_here, "give more prompts")
        return found.at(place[1], place[0])

    def scores(self, rows: Sequence[int], steering: Steering | None = None) -> Tensor:
        """(n,) refusal scores of some cases, in nats."""
        return score_refusals(self.logits(rows, steering), self.tokens)

    def score_of(self, i: int) -> float:
        """The refusal score of one case."""
        every = self.once("scores", lambda: self.scores(range(len(self.cases))))
        return float(every[i])

    def logits(self, rows: Sequence[int], steering: Steering | None = None) -> Tensor:
        """(n, d_vocab) of the next token of some cases; plain ones are computed once."""
        if steering is not None:
            return run_steered(self.model, self.prompts[rows], steering).logits
        return self.once(
            ("logits", *rows), lambda: run_steered(self.model, self.prompts[rows]).logits
        )

    @cached_property
    def trajectories(self) -> Trajectories:
        """The trajectories of all cases at the last token."""
        names: dict[bool | None, Any] = {True: "refusal", False: "target", None: "other"}
        return read_trajectories(
            self.model,
            self.prompts,
            rows=[case.row for case in self.cases],
            tasks=[case.task for case in self.cases],
            classes=[names[self.became(i)] for i in range(len(self.cases))],
        )

    def plain(self, rows: Sequence[int]) -> Plain:
        """Some cases, unchanged, with the replies they get."""
        return self.once(("plain", *rows), lambda: self._plain(rows))

    def _plain(self, rows: Sequence[int]) -> Plain:
        prompts, most = self.prompts[rows], self.settings.max_new_tokens
        made, _ = generate_steered(self.model, prompts, max_new_tokens=most)
        texts = [one.prompt + one.tokens for one in made]
        starts = [len(one.prompt) for one in made]
        losses = text_losses(self.model, texts, starts=starts)
        return Plain(logits=self.logits(rows), texts=texts, starts=starts, losses=losses)

    @cached_property
    def bank(self) -> Bank:
        """The constellations of find rows."""
        return make_bank(self.trajectories[self.rows("find")], least=LEAST)

    def shuffled_bank(self, seed: int) -> Bank:
        """The constellations with labels permuted inside each task."""
        found = self.trajectories[self.rows("find")].shuffled(seed=self.settings.seed + seed)
        return make_bank(found, least=LEAST)

    def few(self, rows: Sequence[int], n: int, *, seed: int = 0) -> list[int]:
        """At most n of some rows, drawn at random and kept in order."""
        generator = torch.Generator().manual_seed(self.settings.seed + seed)
        drawn = torch.randperm(len(rows), generator=generator)[:n].tolist()
        return [rows[i] for i in sorted(drawn)]


def orthogonal(candidates: Candidates, against: Candidates) -> Candidates:
    """Each minus its part along the other, rescaled to its old length; 0 if nothing is left."""
    found, other = candidates.vectors, against.vectors
    unit = torch.nn.functional.normalize(other, dim=-1)
    left = found - (found * unit).sum(-1, keepdim=True) * unit
    lengths = [x.norm(dim=-1, keepdim=True) for x in (found, left)]
    kept = lengths[1] > 1e-9 * lengths[0]
    return replace(candidates, vectors=torch.where(kept, left * lengths[0] / lengths[1], 0.0))
