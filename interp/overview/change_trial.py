"""Changes tried on one prompt, beside matched random ones: next token, dose, and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.continuations import answer_tokens
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.schema import Count, Real, Seed, checked
from interp.core.statistics import range_of_draws, widened
from interp.engine.decode import CHANGEABLE
from interp.models.language_model import Address, LanguageModel
from interp.overview.findings import is_one_token
from interp.overview.logit_parts import one_of
from interp.overview.planned_changes import FREE, PlannedChange, random_rows
from interp.plots.style import visible
from interp.results.direction import kept_directions
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit
from interp.runs.changed_runs import ChangedRuns
from interp.runs.generation import generate, generate_each
from interp.runs.hooks import intervene
from interp.runs.kinds import one_edit
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs, site_values
from interp.runs.text_runs import Generation

DOSES = tuple(x / 4 for x in range(9))
SHOWN = 8
"""Likeliest tokens shown of each run."""


@dataclass(frozen=True, kw_only=True)
class TokenShift:
    """The probability of a next token: plain, changed, and under random changes (95 % range)."""

    token: int
    text: str
    plain: float
    changed: float
    random: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class DoseCurve:
    """The logit difference when every change is made `dose` times as large.

    doses, changed: (doses,). random: (draws, doses) of each matched random change.
    """

    doses: np.ndarray
    changed: np.ndarray
    random: np.ndarray

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """(doses,) the range that holds 95 % of the random changes."""
        low, high = np.quantile(self.random, [0.025, 0.975], axis=0)
        return low, high


@dataclass(frozen=True, kw_only=True, eq=False)
class ChangeTrial:
    """Some changes in force together after one prompt; what is read is computed when asked for.

    Attributes:
        model: the model.
        prompt, foil: token ids.
        changes: those that are on.
        answer, wrong: the tokens whose logit difference is the metric.
        random: the matched random changes, one set of changes for each draw.
        directions: the kept directions that the changes name.
        seed: seed of the draws.
        made_of: hash of the weights of the model.
        dose: x + dose (new - x) stands in place of every new value; 1 is as the changes say.
    """

    model: LanguageModel
    prompt: tuple[int, ...]
    foil: tuple[int, ...] | None
    changes: tuple[PlannedChange, ...]
    answer: int
    wrong: int
    random: tuple[tuple[PlannedChange, ...], ...]
    seed: int
    made_of: str
    dose: float = 1.0
    directions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The metric in words."""
        return " - ".join(map(visible, self.model.strings([self.answer, self.wrong])))

    @property
    def plain(self) -> float:
        """The logit difference of the plain run."""
        return float(self._odds[0])

    @property
    def changed(self) -> float:
        """The logit difference with the changes in force."""
        return float(self._odds[1])

    @property
    def drawn(self) -> np.ndarray:
        """(draws,) the logit difference under each matched random change."""
        return self._odds[2:]

    @property
    def null(self) -> Null:
        """|changed - plain| beside that of the random changes."""
        return self.null_of(self.drawn)

    def null_of(self, drawn: np.ndarray) -> Null:
        """|changed - plain| beside that of other runs, given as their logit differences."""
        return null_of(abs(self.changed - self.plain), np.abs(drawn - self.plain))

    @cached_property
    def harder(self) -> np.ndarray | None:
        """(draws,) the logit difference where every direction is that of two other tokens.

        A whole site that is moved along a direction gets x_i - x_j instead, of the same length: its
        values at two random tokens of the prompt and the foil, the first ones left out. The stream
        varies along these, other than along random ones. None where nothing is moved so, or where
        there are no three different tokens.
        """
        return self._along("tokens", range(1, 1 + len(self.random)))

    @cached_property
    def towards(self) -> float | None:
        """The logit difference where every direction is the answer's unembedding minus the wrong's.

        Of the same length, and in the direction that raises the answer. It says how far this length
        goes when it is aimed at the two tokens themselves. None as for `harder`, and without a fast
        engine.
        """
        found = None if self.model.decoder is None else self._along("answer", [1])
        return None if found is None else float(found[0])

    def _along(self, kind: str, draws: Iterable[int]) -> np.ndarray | None:
        """The logit difference with directions of a kind in place of those of the changes."""
        rows = [row for row in self.changes if row.along]
        if not rows or any(kind == "tokens" and len(self._tokens_of(row)) < 3 for row in rows):
            return None
        made = [
            Change(name=kind, edits=tuple(self._edits(self.changes, self.dose, draw, kind)))
            for draw in draws
        ]
        return _log_odds(self._run(made, [self.answer, self.wrong]))[1:]

    def _tokens_of(self, row: PlannedChange) -> Tensor:
        """(n, width) the different values of a site after the prompt and the foil."""
        return torch.cat([x[1:] for x in self._read(row)]).double().cpu().unique(dim=0)

    def __repr__(self) -> str:
        what = "; ".join(map(str, self.changes))
        return (
            f"ChangeTrial({what}: {self.words} {self.plain:+z.3f} -> {self.changed:+z.3f} logits, "
            f"random {self.drawn.mean():+z.3f}, {len(self.random)} draws)"
        )

    @cached_property
    def tokens(self) -> tuple[TokenShift, ...]:
        """The likeliest next tokens before or after the changes, the likeliest before first."""
        found = self._probabilities
        order = np.argsort(-found[0], kind="stable")
        texts = self.model.strings([self._shown[i] for i in order])
        shifts = []
        for at, text in zip(order, texts, strict=True):
            low, high = range_of_draws(found[2:, at])
            plain, changed, mean = found[0, at], found[1, at], found[2:, at].mean()
            shifts.append(
                TokenShift(
                    token=self._shown[at], text=text, plain=float(plain), changed=float(changed),
                    random=float(mean), low=low, high=high,
                )
            )  # fmt: skip
        return tuple(shifts)

    @reads_arguments
    def doses(self, doses: Sequence[float] = DOSES) -> DoseCurve:
        """The logit difference by dose, whatever the dose of the trial.

        At dose 0 the model is plain. The random changes get the same doses.

        Raises:
            InterpError: no dose, or one that is not a finite number.
        """
        wanted = [float(checked(Real, dose, "a dose")) for dose in listed(doses)]
        if not wanted:
            raise InterpError("a dose curve", "no doses", "give numbers such as 0, 0.5, 1, 2")
        made = [change for dose in wanted for change in self._made(dose)]
        odds = _log_odds(self._run(made, [self.answer, self.wrong]))[1:].reshape(len(wanted), -1)
        return DoseCurve(doses=np.array(wanted), changed=odds[:, 0], random=odds[:, 1:].T)

    @reads_arguments
    def texts(self, max_new_tokens: int = 30) -> dict[str, Generation]:
        """The greedy text: "plain", "changed", and "matched random", the first draw.

        Raises:
            InterpError: more tokens than the model has positions.
        """
        count = checked(Count, max_new_tokens, "new tokens")
        made = [None, *self._made(self.dose)[:2]]
        if self._is_fast:
            runs = generate_each(self.model, [self.prompt], made, max_new_tokens=count)
        else:
            runs = [self._hooked_text(change, count) for change in made]
        return dict(zip(("plain", "changed", "matched random"), (one[0] for one in runs)))  # noqa: B905

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and texts, for JSON; not the texts and doses."""
        return {
            "model": self.model.name,
            "model_hash": self.model.hash,
            "prompt": list(self.model.strings(self.prompt)),
            "foil": None if self.foil is None else list(self.model.strings(self.foil)),
            "changes": list(map(str, self.changes)),
            "metric": f"logit difference, {self.words}",
            "plain": self.plain,
            "changed": self.changed,
            "random": self.drawn.tolist(),
            "random_changes": [list(map(str, rows)) for rows in self.random],
            "null": asdict(self.null),
            "along_differences_of_tokens": None if self.harder is None else self.harder.tolist(),
            "along_the_answer": self.towards,
            "seed": self.seed,
            "dose": self.dose,
            "tokens": [asdict(token) for token in self.tokens],
        }

    @property
    def _is_fast(self) -> bool:
        return _is_fast(self.model, (row.part.site for row in self.changes))

    @cached_property
    def _shown(self) -> list[int]:
        """The answer, the other token, and the likeliest tokens of both runs."""
        found = [self.answer, self.wrong]
        for change in (None, self._made(self.dose)[0]):
            found += _next_logits(self.model, self.prompt, change).topk(SHOWN).indices.tolist()
        return list(dict.fromkeys(found))

    @cached_property
    def _probabilities(self) -> np.ndarray:
        """(2 + draws, tokens) of the tokens shown: plain, changed, random."""
        return self._run(self._made(self.dose), self._shown)

    @property
    def _odds(self) -> np.ndarray:
        return _log_odds(self._probabilities)

    def _run(self, changes: Sequence[Change], tokens: list[int]) -> np.ndarray:
        """(1 + changes, tokens) probabilities of the plain run, then under each change."""
        if self._is_fast:
            seen = ablate(self.model, [self.prompt], changes, tokens=tokens)
            return seen.probabilities[:, 0]
        rows = [_next_logits(self.model, self.prompt, change) for change in (None, *changes)]
        return torch.stack(rows).double().softmax(-1)[:, tokens].cpu().numpy()

    def _hooked_text(self, change: Change | None, count: int) -> list[Generation]:
        with intervene(self.model, change or []):
            return generate(self.model, [self.prompt], max_new_tokens=count)

    @cached_property
    def _values(self) -> list[Mapping[Address, Tensor]]:
        """The sites that the changes read, after the prompt and the foil: (1, tokens, ...)."""
        rows = [row for each in (self.changes, *self.random) for row in each]
        parts = [row.part for row in rows if row.how not in FREE]
        texts = [self.prompt, *([] if self.foil is None else [self.foil])]
        if not parts:
            return []
        at = list({(part.layer, part.site): None for part in parts})
        if self._is_fast:
            return [site_values(self.model, [text], at, last=len(text)) for text in texts]
        layers, sites = (sorted(set(names)) for names in zip(*at, strict=True))
        return [
            run_with_cache(self.model, [text], sites=sites, layers=layers).values for text in texts
        ]

    def _read(self, row: PlannedChange) -> list[Tensor]:
        """A component's value after the prompt and the foil: (tokens, width) each."""
        if row.how in FREE:
            return []
        part, whole = row.part, [found[row.part.layer, row.part.site][0] for found in self._values]
        return [
            x.flatten(1) if part.index is None else x[:, [part.index]].flatten(1) for x in whole
        ]

    def _made(self, dose: float) -> list[Change]:
        """The changes, then those of each draw, each in force together."""
        return [
            Change(name="; ".join(map(str, rows)), edits=tuple(self._edits(rows, dose, draw)))
            for draw, rows in enumerate((self.changes, *self.random))
        ]

    def _edits(
        self, rows: Sequence[PlannedChange], dose: float, draw: int, kind: str = "random"
    ) -> Iterator[Edit]:
        """One edit for each change; all draws but the first have other directions, of a kind."""
        self.model.require_hash(self.made_of, "a trial of changes")
        for number, row in enumerate(rows):
            values, along = self._read(row), self.directions.get(row.direction)
            if row.along and draw:
                own = values[0][-1] - values[1][-1] if along is None else along
                length = own.double().norm()
                rng = np.random.default_rng([self.seed, draw, number])
                other = self._other(kind, row, rng)
                along = other / other.norm() * length.cpu()
            value = row.value(len(self.prompt), dose, values, along)
            yield one_edit(row.how, row.part, value)

    def _other(self, kind: str, row: PlannedChange, rng: np.random.Generator) -> Tensor:
        """(width,) a direction for a change: random, of two tokens, or towards the answer."""
        if kind == "answer":
            both = self.model.decoder.unembed[[self.answer, self.wrong]].double().cpu()  # type: ignore[union-attr]
            return (both[0] - both[1]) * (-1 if row.strength < 0 else 1)
        if kind == "tokens":
            found = self._tokens_of(row)
            first, second = rng.choice(len(found), 2, replace=False)
            return found[first] - found[second]
        return torch.from_numpy(rng.standard_normal(self._read(row)[0].shape[1]))


@reads_arguments
def try_changes(
    model: LanguageModel,
    prompt: Prompt,
    changes: Sequence[str | PlannedChange],
    *,
    foil: Prompt | None = None,
    answer: str | int | None = None,
    wrong: str | int | None = None,
    draws: int = 20,
    seed: int = 0,
    dose: float = 1.0,
) -> ChangeTrial:
    """Change some components together after one prompt, beside matched random changes.

        metric = logit[answer] - logit[wrong] after the prompt, in logits

    Every change is measured exactly, by a run of its own. The random changes do the same to random
    components: heads and neurons of the same layers, the same site of other layers for a whole
    site. If a layer has too few others, the changed components are drawn too, which makes the
    comparison stricter. A whole site that is steered, or from which a direction is projected out,
    keeps its place and gets a random direction of the same length. The stream varies little along
    most random directions, so they are easily beaten: such a rank is weak evidence. `harder` and
    `towards` of the result are stricter comparisons for these.

    Args:
        model: any model. Without a fast engine, and at sites that it does not change, every run is
            a whole forward pass.
        prompt: a text, or token ids.
        changes: `PlannedChange`s, or texts such as "L20H0, zero" and
            "L15.resid_post, steer, 2, generated tokens, my-mood", where my-mood is a direction of
            `interp.results.kept_directions`; without one it is the foil's. Those that are off are
            left out; those of one component apply in their order.
        foil: a prompt for "patch" (of as many tokens), "steer" and "project out"; "mean" is over
            its tokens too. A text of one token is read as `wrong` instead.
        answer: the token that is explained; the likeliest next token by default.
        wrong: the token it is compared with; the likeliest after the foil, or the runner-up.
        draws: number of random changes; fewer if there are not so many.
        seed: seed of the draws.
        dose: how far all changes go: x + dose (new - x) in place of every new value.

    Returns:
        ChangeTrial. n = 1: one prompt has no interval; the random changes are the comparison.

    Raises:
        InterpError: no change that is on, a component that the model lacks, a change that needs a
            foil without one, a foil of another length for "patch", a "patch" of generated tokens,
            an answer of several tokens, equal answers, an unknown direction, or inside `intervene`.
    """
    model.refuse_changed("trying changes", "one intervene() for all of them")
    draws, seed = checked(Count, draws, "random changes"), checked(Seed, seed, "a seed")
    rows = [
        one if isinstance(one, PlannedChange) else PlannedChange.parse(one)
        for one in listed(changes)
    ]
    rows = tuple(row for row in rows if row.on)
    if not rows:
        raise InterpError("trying changes", "none is on", "switch one on, or add one")
    if isinstance(foil, str) and wrong is None and is_one_token(model, prompt, foil):
        wrong, foil = foil, None
    tokens = model.tokenize(prompt).tokens
    other = None if foil is None else model.tokenize(foil).tokens
    named = {row.direction for row in rows if row.direction}
    known = kept_directions(model) if named else {}
    for name in sorted(named - known.keys()):
        raise unknown(f"direction kept of {model.name}:", name, known)
    for row in rows:
        model.require_component(row.part)
        row.require(tokens, other)
    right, least = _chosen(model, prompt, tokens, other, answer, wrong)
    return ChangeTrial(
        model=model,
        prompt=tokens,
        foil=other,
        changes=rows,
        answer=right,
        wrong=least,
        random=tuple(random_rows(model, rows, draws, seed)),
        seed=seed,
        made_of=model.hash,
        dose=checked(Real, dose, "a dose"),
        directions={name: known[name].vector for name in named},
    )


def _chosen(
    model: LanguageModel,
    prompt: Prompt,
    tokens: tuple[int, ...],
    foil: tuple[int, ...] | None,
    answer: str | int | None,
    wrong: str | int | None,
) -> tuple[int, int]:
    """The answer and the token it is compared with."""
    plain = _next_logits(model, tokens, None)
    right = int(plain.argmax())
    if answer is not None:
        asked = f"answer {answer!r}"
        right = one_of(model, answer_tokens(model, prompt, answer, asked), asked)
    if wrong is not None:
        asked = f"wrong answer {wrong!r}"
        least = one_of(model, answer_tokens(model, prompt, wrong, asked), asked)
    else:
        seen = plain if foil is None else _next_logits(model, foil, None)
        least = next(token for token in seen.topk(2).indices.tolist() if token != right)
    if right == least:
        text = model.strings([right])[0]
        found = f"both are the token {text!r}"
        raise InterpError("a logit difference", found, "give two different tokens")
    return right, least


def _is_fast(model: LanguageModel, sites: Iterable[str]) -> bool:
    """Whether the fast engine can change these sites of a model."""
    return model.decoder is not None and {*sites} <= {*CHANGEABLE}


def _next_logits(model: LanguageModel, prompt: tuple[int, ...], change: Change | None) -> Tensor:
    """(d_vocab,) the logits after a prompt."""
    runs = None
    if _is_fast(model, () if change is None else (edit.site for edit in change.edits)):
        runs = keep_runs(model, [prompt], last=1, whole=True)
    if runs is not None:
        found = runs if change is None else ChangedRuns(runs=runs, change=change)
        return widened(found.logits()[0])
    with intervene(model, change or []):
        return widened(model.last_logits([prompt])[0])


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    """The logit difference of the first two tokens."""
    logs = np.log(np.maximum(probabilities[:, :2], 1e-300))
    return logs[:, 0] - logs[:, 1]
