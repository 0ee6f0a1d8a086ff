"""The head atlas: what every head does by itself, by its attention and by its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.components import Component
from interp.core.corpus import Corpus, shipped_passages, texts_in
from interp.core.errors import InterpError, unknown
from interp.core.run_options import RunOptions
from interp.core.schema import Count, NotNegative, Seed, checked
from interp.engine.memory import says_too_little
from interp.engine.stopping import stoppable
from interp.heads.attention import AttentionTo
from interp.heads.attention_keys import ROLES
from interp.heads.attention_scores import TokenIds, attention_scores
from interp.heads.copying import Copying, copying_scores
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

REPEATED, TEXT = "repeated", "text"
"""The two kinds of prompts: repeated random tokens, and natural text."""

FAMILYWISE = 0.05
"""Probability that chance names any head of a model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadAtlas(Tabled):
    """What every head of a model does by itself.

    Attributes:
        model: the model's name.
        scores: on "repeated" random tokens and on "text", each measure of `attention_scores` by its
            name, such as "to previous token": a mean over prompts for every head, with n, interval,
            chance and control.
        copying: the copying scores; None without known weights.
        least: attention beyond the control that a head must surely have to be named.
    """

    model: str
    scores: Mapping[str, Mapping[str, AttentionTo]]
    copying: Copying | None
    least: float

    def __repr__(self) -> str:
        first = next(iter(self.scores[REPEATED].values()))
        _, layers, heads = first.samples.shape
        named = self.named()
        n = ", ".join(f"n={n} {kind}" for kind, n in self.n.items())
        roles = "; ".join(f"{role} {_listed(some)}" for role, some in named.items())
        return f"HeadAtlas({self.model}, {layers} layers x {heads} heads, {n}; {roles})"

    @property
    def n(self) -> dict[str, int]:
        """The number of prompts of each kind."""
        return {kind: max(s.n for s in some.values()) for kind, some in self.scores.items()}

    def named(self, on: str = REPEATED) -> dict[str, list[str]]:
        """For each role of `ROLES` the heads that surely have it, the strongest first.

        The attention to the role's keys must exceed that to other keys at like distances by more
        than `least`: the lower end of an interval of that excess, at a level corrected for all
        heads and roles (Bonferroni, 5 % for the model).

        Raises:
            InterpError: unknown prompts.
        """
        found: dict[str, list[str]] = {role: [] for role in ROLES.values()}
        for measure, role in ROLES.items():
            if measure not in self._on(on):
                continue
            seen = self.scores[on][measure]
            tested = seen.values.size * len(ROLES)
            low, _ = seen.excess_interval(level=1 - FAMILYWISE / tested)
            order = np.argsort(-seen.excess, axis=None, kind="stable")
            places = [divmod(int(at), low.shape[1]) for at in order]
            found[role] = [_label(*at) for at in places if low[at] > self.least]
        return found

    def to_dataframe(self) -> Any:
        """One row per head: its roles, its mean scores on both kinds of prompts, its copying score.

        `scores[kind][measure].to_dataframe()` has the interval, chance and control of each.
        """
        from pandas import DataFrame

        some = next(iter(self.scores[REPEATED].values())).values
        labels = [_label(*at) for at in np.ndindex(some.shape)]
        layers, heads = (index.ravel() for index in np.indices(some.shape))
        named = self.named()
        roles = [", ".join(r for r, mine in named.items() if label in mine) for label in labels]
        table = DataFrame({"component": labels, "layer": layers, "head": heads, "roles": roles})
        for kind, measures in self.scores.items():
            for measure, seen in measures.items():
                table[f"{measure} ({kind})"] = seen.values.ravel()
        if self.copying is not None:
            table["copying"] = self.copying.values.ravel()
        return table

    def strongest(self, k: int = 3) -> Any:
        """The k strongest heads of each role and kind of prompts, as a pandas DataFrame.

        Strongest by attention beyond the control. "named" says whether a head surely has the role.

        Raises:
            InterpError: k is below 1.
        """
        from pandas import concat

        k, parts = checked(Count, k, "the strongest heads"), []
        for kind, measures in self.scores.items():
            named = self.named(kind)
            for measure in [one for one in ROLES if one in measures]:
                best = measures[measure].to_dataframe().nlargest(k, "excess")
                role = ROLES[measure]
                best.insert(0, "role", role)
                best.insert(1, "prompts", kind)
                parts.append(best.assign(named=best["component"].isin(named[role])))
        columns = ["role", "prompts", "component", "value", "low", "high", "chance", "excess", "n"]
        return concat(parts)[[*columns, "named"]]

    def _shown(self) -> Any:
        return self.strongest(2).loc[lambda table: table["prompts"] == REPEATED]

    def plot(self, measure: str = "to token after same token", on: str = REPEATED) -> Any:
        """A Plotly heat map of one measure, or of "copying": layers upwards, heads across.

        Raises:
            InterpError: an unknown measure or unknown prompts, or one that no prompt has.
        """
        from interp.plots.heatmaps import heat_map

        stderr = None
        if measure == "copying" and self.copying is not None:
            values, title = self.copying.values, "copying score"
        elif measure in self._on(on):
            seen = self.scores[on][measure]
            values, stderr, title = seen.values, seen.stderr, f"{measure}, {on}"
        else:
            raise unknown("measure", measure, [*self._on(on), *["copying"] * bool(self.copying)])
        layers, heads = values.shape
        return heat_map(
            values,
            x=[str(head) for head in range(heads)],
            y=[str(layer) for layer in range(layers)],
            x_title="head",
            y_title="layer",
            colour_title=title,
            signed=measure == "copying",
            stderr=stderr,
            names=[[_label(layer, head) for head in range(heads)] for layer in range(layers)],
        )

    def _on(self, on: str) -> Mapping[str, AttentionTo]:
        if on not in self.scores:
            raise unknown("prompts of the atlas", on, self.scores)
        return self.scores[on]


@reads_arguments
@says_too_little
def head_atlas(
    model: LanguageModel,
    texts: Corpus | None = None,
    *,
    n: int = 24,
    length: int = 25,
    least: float = 0.1,
    draws: int = 20,
    seed: int = 0,
    budget_gb: float = 0.5,
    cancelled: Callable[[], bool] = lambda: False,
) -> HeadAtlas:
    """What every head does by itself: where it attends on any text, and whether it copies.

    Each measure of `attention_scores` is taken twice: on random tokens that are repeated once,
    where nothing but position and identity can guide a head, and on natural text. Beside each score
    are uniform attention and the attention to other keys of the same queries at like distances. The
    copying scores are those of `copying_scores`. `HeadAtlas.named` says which heads are
    previous-token, induction, duplicate-token, first-token or current-token heads.

    A repeated prompt is the tokens that the tokeniser puts before a text, and twice the same random
    tokens: between half of `length` and `length`, different ones, none special. Lengths vary, so
    that a fixed distance is not mistaken for induction. A model with a small vocabulary or few
    positions gets shorter ones. Inside `intervene` the attention is that of the changed runs, and
    the copying scores are those of the weights.

    Args:
        model: a model that offers patterns.
        texts: the natural text: a list of texts or token ids, or a file (`Corpus`); by default the
            passages that ship. Patterns of one layer and batch are in memory at a time, so a long
            list takes time but little memory.
        n: number of repeated prompts.
        length: most tokens of the part that is repeated.
        least: see `HeadAtlas.named`; a share of all attention.
        draws: random heads for each head, for the copying score.
        seed: seed of the random tokens and of the random heads.
        budget_gb: memory for the keys that are counted. It changes no result.
        cancelled: asked in every layer; the work stops when it returns True.

    Raises:
        InterpError: a model without patterns; one without a tokeniser, unless token ids are given;
            no texts; or a vocabulary of fewer than two tokens.

    Source: the roles are those of Elhage et al. 2021 and Olsson et al. 2022 (arXiv 2209.11895).
    Olsson et al. measure induction as here; the control and the rule that names heads are ours.
    """
    n, length = (checked(Count, value, name) for value, name in ((n, "n"), (length, "length")))
    least, seed = checked(NotNegative, float(least), "least"), checked(Seed, seed, "seed")
    options = RunOptions(budget_gb=budget_gb, cancelled=cancelled)
    given = shipped_passages() if texts is None else texts
    rows = [model.tokenize(text).tokens for text in texts_in(given)]
    prompts = {REPEATED: repeated_tokens(model, n, length, seed=seed), TEXT: rows}
    with stoppable(options.cancelled):
        return HeadAtlas(
            model=model.name,
            scores={
                kind: attention_scores(model, some, budget_gb=options.budget_gb)
                for kind, some in prompts.items()
            },
            copying=None
            if model.decoder is None
            else copying_scores(model, draws=draws, seed=seed),
            least=least,
        )


def repeated_tokens(model: LanguageModel, n: int, length: int, *, seed: int = 0) -> list[TokenIds]:
    """Prompts of random tokens that are repeated once; see `head_atlas`.

    Raises:
        InterpError: the vocabulary has fewer than two tokens that are not special.
    """
    rng, start = np.random.default_rng(seed), model.affixes[0]
    special = set() if model.tokenizer is None else {*model.tokenizer.all_special_ids}
    known = model.d_vocab if model.tokenizer is None else min(model.d_vocab, len(model.tokenizer))
    usable = np.array([token for token in range(known) if token not in special])
    room = len(usable)
    if model.max_positions is not None:
        room = min(room, (model.max_positions - len(start)) // 2)
    if room < 2:
        found = f"{len(usable)} tokens that are not special, {model.max_positions} positions"
        raise InterpError(f"repeated random tokens for {model.name}", found, "use a larger model")
    most = min(length, room)
    halves = rng.integers(max(1, most // 2), most + 1, size=n)
    drawn = [rng.choice(usable, half, replace=False).tolist() for half in halves]
    return [(*start, *half, *half) for half in drawn]


def _listed(heads: list[str]) -> str:
    """The first heads of a list, and how many more."""
    more = f" and {len(heads) - 3} more" if len(heads) > 3 else ""
    return f"{' '.join(heads[:3])}{more}" if heads else "none"


def _label(layer: Any, head: Any) -> str:
    return str(Component(int(layer), "z", int(head)))
