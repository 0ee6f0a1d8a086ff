"""What a model's state holds along its CountDown attempts, beside what tokens and outputs tell."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.components import within
from interp.core.errors import InterpError, unknown
from interp.core.schema import Brief
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.probing.class_probes import ClassFitKeywords, probe_classes, probe_values
from interp.probing.held_out_probes import HeldOutProbes
from interp.probing.output_signatures import states_and_signature
from interp.runs.text_runs import Generation
from interp.tasks.countdown import Problem

TraceState = Literal["total", "distance", "left", "verdict"]

TOP, LAST = 50, 12
"""Probabilities of the signature of the outputs, and tokens whose place the tokens' probe knows."""

_ATTEMPT = re.compile(
    r"(\d+(?: [-+] \d+)+)((?: = -?\d+(?: [-+] \d+)*)+) \((this works|not -?\d+)\)"
)


@dataclass(frozen=True, kw_only=True)
class TraceSteps(Brief):
    """One row for each operand of each attempt, read at the operand's last digit.

    Attributes:
        texts: the tokens of every text, prompt included.
        text: (n,) the text of each row.
        position: (n,) its token.
        attempt: (n,) the number of the attempt in its text, from 0.
        operand: (n,) how many operands of the attempt are written, from 1.
        of: (n,) how many it has.
        total: (n,) the running total of these operands, which the text does not say there.
        distance: (n,) target minus running total.
        left: (n,) sum of the problem's numbers that are not yet used.
        verdict: (n,) whether the model goes on to write "this works", `of - operand` operands and
            the sums later.
    """

    texts: tuple[tuple[int, ...], ...]
    text: np.ndarray
    position: np.ndarray
    attempt: np.ndarray
    operand: np.ndarray
    of: np.ndarray
    total: np.ndarray
    distance: np.ndarray
    left: np.ndarray
    verdict: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, chosen: np.ndarray) -> TraceSteps:
        """Some of the rows."""
        some = {k: v[chosen] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **some)


def trace_steps(
    model: LanguageModel, texts: Sequence[Generation], problems: Sequence[Problem]
) -> TraceSteps:
    """The steps of the attempts that a model wrote, each text for one problem.

    An attempt is a sum, its results and a verdict, such as 84 - 60 + 47 = 24 + 47 = 71 (not 70);
    text of another form has no steps.

    Raises:
        InterpError: not one problem for each text, or no attempt in any.
    """
    asked = f"steps of {len(texts)} texts"
    if len(texts) != len(problems):
        raise InterpError(asked, f"{len(problems)} problems", "give one problem for each text")
    rows: list[tuple[int, ...]] = []
    for number, (one, problem) in enumerate(zip(texts, problems, strict=True)):
        pieces = model.strings(one.tokens)
        ends = list(accumulate(map(len, pieces)))
        for attempt, match in enumerate(_ATTEMPT.finditer("".join(pieces))):
            left, total = Counter(problem.numbers), 0
            written = list(re.finditer(r"([-+]?) ?(\d+)", match.group(1)))
            for place, term in enumerate(written, 1):
                value = int(term.group(2))
                total += -value if term.group(1) == "-" else value
                left -= Counter([value])
                at = len(one.prompt) + bisect_right(ends, match.start(1) + term.end() - 1)
                rest = sum(left.elements())
                facts = (total, problem.target - total, rest, match.group(3) == "this works")
                rows.append((number, at, attempt, place, len(written), *facts))
    if not rows:
        raise InterpError(asked, "no attempt in any", "give texts of a model that plays CountDown")
    names = ("text", "position", "attempt", "operand", "of", "total", "distance", "left", "verdict")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    columns["verdict"] = columns["verdict"].astype(bool)
    return TraceSteps(texts=tuple((*one.prompt, *one.tokens) for one in texts), **columns)


@dataclass(frozen=True, kw_only=True)
class TraceProbes(Tabled):
    """Probes of one part of the state, operand by operand, with the same held-out problems.

    Attributes:
        model: the model's name.
        what: what is predicted.
        states: operand -> probes of the residual stream behind each layer.
        rivals: operand -> name -> probes of "tokens", of "outputs", and of every other model.
    """

    model: str
    what: str
    states: Mapping[int, HeldOutProbes]
    rivals: Mapping[int, Mapping[str, HeldOutProbes]]

    def __repr__(self) -> str:
        best = [f"operand {k} {float(v.values.max()):z.2f}" for k, v in self.states.items()]
        return f"TraceProbes({self.model}, {self.what}; best layer: {', '.join(best)})"

    def to_dataframe(self) -> Any:
        """One row per operand and layer: measure, controls, and the difference to each rival."""
        import pandas as pd

        tables = []
        for operand, one in self.states.items():
            table = one.to_dataframe()
            table.insert(0, "operand", operand)
            for name, rival in self.rivals[operand].items():
                apart = one.minus(rival)
                table[name] = rival.values if rival.values.ndim else float(rival.values)
                table[f"beyond {name}"] = apart.values
                table[f"beyond {name}, low"], table[f"beyond {name}, high"] = apart.low, apart.high
                table[f"beyond {name}, p_any"] = apart.p_any
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def plot(self) -> Any:
        """A Plotly figure of the measure by layer, one line an operand."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for operand, one in self.states.items():
            layers = list(one.coordinates["layer"])
            figure.add_scatter(x=layers, y=one.values.tolist(), name=f"operand {operand}")
        measure = next(iter(self.states.values())).measure
        return figure.update_layout(xaxis_title="layer", yaxis_title=measure, title=self.what)


@reads_arguments
@says_too_little
def probe_trace(
    model: LanguageModel,
    steps: TraceSteps,
    what: TraceState | Sequence[TraceState] = "total",
    *,
    others: Mapping[str, LanguageModel] | None = None,
    layers: Iterable[int] | None = None,
    **fit: Unpack[ClassFitKeywords],
) -> dict[str, TraceProbes]:
    """Whether a model's state holds the running total, the distance, what is left, the verdict.

    At each operand a probe of the residual stream behind each layer (`probe_values` of numbers,
    `probe_classes` of the verdict) is judged on problems that it was not fitted to. Labels are
    permuted within one operand, so position tells nothing. Beside it, on the same held-out rows:

    - `tokens`: the same kind of probe of the tokens before, each of the last 12 in its place, and
      how often each token occurs. What it reads needs no computation by the model;
    - `outputs`: a probe of the model's `output_signature` up to there;
    - every model of `others`, which reads the same texts, such as the one before training, or one
      with random weights (`interp.models.loading.reinitialised`).

    That a probe reads the verdict ahead does not show that the model plans: it may read what sums
    are likely to be right. `interp.probing.fit_subspace` tests whether the next step depends on it.

    Args:
        model: a loaded model.
        steps: what `trace_steps` returned. Give attempts of equal length, such as
            `steps.take((steps.of == 3) & (steps.attempt == 0))`, or position tells the label.
        what: "total", "distance", "left" or "verdict", or several.
        others: models with the same tokens, by a name.
        layers: layers to probe; all by default. Of other models, the same ones.
        fit: kind, folds, shuffles, regularisation, hidden and seed of `probe_values`.

    Returns:
        For each of `what` its probes. Operands at which it is the same in every row are left out.

    Raises:
        InterpError: an unknown state, a name of `others` that is taken, a layer that a model lacks,
            too few rows, and what `probe_values` and `probe_classes` refuse.

    Source: Goal-directedness, arXiv 2602.08964, for the question in a grid world; the states of an
    arithmetic trace, the rivals and their intervals are ours.
    """
    wanted = [what] if isinstance(what, str) else list(what)
    for one in wanted:
        if one not in get_args(TraceState):
            raise unknown("state of a trace", one, get_args(TraceState))
    others = dict(others or {})
    if taken := {"tokens", "outputs"} & {*others}:
        raise InterpError("other models of a trace", f"the name {min(taken)!r}", "give another")
    chosen = within(layers, model.n_layers, "layer", model.name)
    for name, other in others.items():
        within(chosen, other.n_layers, "layer", name)
    read = {"": _read(model, steps, chosen)}
    read |= {name: _read(other, steps, chosen) for name, other in others.items()}
    tokens = _token_features(steps)
    found = {}
    for one in wanted:
        states, rivals = {}, {}
        for operand in np.unique(steps.operand).tolist():
            rows = np.flatnonzero(steps.operand == operand)
            labels = getattr(steps, one)[rows]
            if len(np.unique(labels)) < 2:
                continue
            shared: dict[str, Any] = {"labels": labels, "classes": one == "verdict", "fit": fit}
            group = steps.text[rows].tolist()
            at = torch.from_numpy(rows)
            own, outputs = read[""]
            first = _probed(own[:, at], model.name, layers=chosen, groups=group, **shared)
            states[operand], shared["test"] = first, first.test
            rivals[operand] = {
                "tokens": _probed(tokens[at], "tokens", **shared),
                "outputs": _probed(outputs[at], "outputs", **shared),
                **{
                    name: _probed(read[name][0][:, at], name, layers=chosen, **shared)
                    for name in others
                },
            }
        if not states:
            raise InterpError(f"probes of {one}", "the same in every row", "give other texts")
        found[one] = TraceProbes(model=model.name, what=one, states=states, rivals=rivals)
    return found


def _probed(
    X: Tensor,
    source: str,
    *,
    labels: np.ndarray,
    classes: bool,
    fit: Mapping[str, Any],
    layers: list[int] | None = None,
    **rows: Any,
) -> HeldOutProbes:
    """Probes of classes or of numbers, of states behind some layers or of other features."""
    axes = {} if layers is None else {"layer": layers}
    facts = {"source": source, "site": "features" if layers is None else "resid_post"}
    probe = probe_classes if classes else probe_values
    return probe(X, labels.tolist(), coordinates=axes, source=facts, **rows, **fit)


def _read(model: LanguageModel, steps: TraceSteps, layers: list[int]) -> tuple[Tensor, Tensor]:
    """(layer, n, d_model) states and (n, features) signatures, each text run once."""
    used, text = np.unique(steps.text, return_inverse=True)
    ends = [int(steps.position[text == i].max()) + 1 for i in range(len(used))]
    rows = [steps.texts[i][:end] for i, end in zip(used.tolist(), ends, strict=True)]
    k = min(TOP, model.d_vocab)
    states, signature = states_and_signature(model, rows, layers=layers, k=k, every=True)
    at = torch.from_numpy(text)
    parts = {name: getattr(signature, name)[at] for name in ("top", "written", "rank")}
    upto = replace(signature, lengths=torch.from_numpy(steps.position + 1), **parts)
    return states[:, at, torch.from_numpy(steps.position)], upto.vectors()


def _token_features(steps: TraceSteps) -> Tensor:
    """(n, features) counts of the tokens so far, and which token is at each of the last places."""
    before = [steps.texts[i][: at + 1] for i, at in zip(steps.text, steps.position, strict=True)]
    known = {token: i for i, token in enumerate(sorted({t for row in before for t in row}))}
    counts = torch.zeros(len(before), len(known))
    places = torch.zeros(len(before), LAST, len(known))
    for i, row in enumerate(before):
        for token in row:
            counts[i, known[token]] += 1
        for place, token in enumerate(row[-LAST:][::-1]):
            places[i, place, known[token]] = 1
    return torch.cat([counts, places.flatten(1)], 1)


def result_onsets(
    model: LanguageModel, texts: Sequence[Generation], *, least: int = 8
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Texts cut before the first result of their first attempt, and the token written there.

    These are prompts and values for `interp.probing.fit_subspace`: the next step is the result's
    first digit. Tokens that occur fewer than `least` times are left out.

    Raises:
        InterpError: fewer than two such tokens.
    """
    rows: list[tuple[tuple[int, ...], int]] = []
    for one in texts:
        pieces = model.strings(one.tokens)
        ends = list(accumulate(map(len, pieces)))
        match = _ATTEMPT.search("".join(pieces))
        if match is not None:
            at = bisect_right(ends, match.start(2) + len(" = "))
            rows.append(((*one.prompt, *one.tokens[:at]), one.tokens[at]))
    counts = Counter(token for _, token in rows)
    kept = [row for row in rows if counts[row[1]] >= least]
    if len({token for _, token in kept}) < 2:
        found = f"first digits {sorted(counts.values(), reverse=True)} times"
        raise InterpError(f"results of {len(texts)} texts", found, "give more texts")
    return [prompt for prompt, _ in kept], [token for _, token in kept]
