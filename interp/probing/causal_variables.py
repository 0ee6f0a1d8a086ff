"""A subspace of the state that holds a variable: found by interchange, judged beside its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, rows_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Count, checked
from interp.core.statistics import Estimate, share_estimate
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.models.loading import reinitialised
from interp.plots.tables import Tabled
from interp.runs.change import Change, Edit, Tokens
from interp.runs.changed_runs import changed_states
from interp.runs.stored_runs import StoredRuns, keep_runs

SITE = "resid_post"


@dataclass(frozen=True, kw_only=True)
class SubspaceTest(Tabled):
    """How often an exchange within a subspace changes the answer as the variable asks.

    Attributes:
        name: the subspace, such as "fitted" or "random".
        dim: its dimension.
        changed: share of held-out exchanges right where the two values differ: the answer becomes
            that of the source (Wilson interval).
        kept: the same where they are equal: the answer stays.
    """

    name: str
    dim: int
    changed: Estimate
    kept: Estimate


@dataclass(frozen=True, kw_only=True)
class CausalVariable(Tabled):
    """A subspace fitted to hold a variable, and its rivals, on held-out prompts.

    Attributes:
        model: the model's name.
        model_hash: its hash.
        layer: the layer behind whose block the state is exchanged.
        position: the token, counted from the end: -1 is the last.
        rows: (dim, d_model) orthonormal rows of the fitted subspace, float64.
        loss: (steps,) of the fit, in nats per exchange.
        tests: the fitted subspace first, then its rivals.
    """

    model: str
    model_hash: str
    layer: int
    position: int
    rows: Tensor = field(repr=False)
    loss: np.ndarray = field(repr=False)
    tests: tuple[SubspaceTest, ...]

    def __getitem__(self, name: str) -> SubspaceTest:
        """The test of a subspace by its name."""
        for test in self.tests:
            if test.name == name:
                return test
        names = ", ".join(test.name for test in self.tests)
        raise InterpError(f"the subspace {name!r}", "there is none", f"choose from {names}")

    def __repr__(self) -> str:
        first = self.tests[0]
        return (
            f"CausalVariable({self.model}, layer {self.layer}, {first.dim} dimensions: right where "
            f"the values differ {first.changed}, where they are equal {first.kept})"
        )

    def to_dataframe(self) -> Any:
        """One row per subspace."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "subspace": test.name,
                    "dimensions": test.dim,
                    "changed": test.changed.mean,
                    "changed, low": test.changed.low,
                    "changed, high": test.changed.high,
                    "kept": test.kept.mean,
                    "kept, low": test.kept.low,
                    "kept, high": test.kept.high,
                    "n": test.changed.n + test.kept.n,
                }
                for test in self.tests
            ]
        )


@reads_arguments
@says_too_little
def fit_subspace(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    values: Sequence[Any],
    answers: Mapping[Any, str | int],
    *,
    layer: int,
    dim: int = 1,
    position: int = -1,
    n: int = 96,
    steps: int = 80,
    rate: float = 0.01,
    untrained: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> CausalVariable:
    """Find a subspace whose content, taken from another prompt, brings that prompt's value along.

        h' = h + R^T R (h_source - h),   R (dim, d_model) with orthonormal rows

    h is the state behind a layer at one token of a base prompt, h_source that of a source prompt.
    R is fitted by Adam so that the model then answers what the source's value asks: the loss is
    the cross-entropy of the right answer among the given answers. Half of the prompts are for the
    fit, the others for the tests, and no exchange joins the two halves.

    A fit with enough dimensions succeeds for anything, so the rivals stand beside it, on the same
    held-out exchanges:

        random             as many random dimensions
        means              the differences of the classes' mean states
        unembedding        the differences of the answers' unembedding vectors
        whole state        all dimensions: what any subspace could reach
        other labels       fitted and judged with values dealt to the prompts at random
        untrained          fitted in a model of the same form with random weights (optional)

    Args:
        model: a model with a fast engine.
        prompts: texts; the answer is read at the last token.
        values: the variable's value for each prompt.
        answers: for each value, the answer, one token.
        layer: the state behind its block is exchanged.
        dim: dimensions of the subspace.
        position: the token of the state, counted from the end.
        n: exchanges in each half, half of them between equal values.
        steps: steps of Adam.
        rate: its learning rate.
        untrained: also fit in a model with random weights, which takes its memory.
        seed: of the halves, the exchanges and the fit.
        progress: called with (steps done, steps in total).

    Raises:
        InterpError: fewer than two values, a value with fewer than four prompts or without an
            answer, equal answers, no such layer or token, or more dimensions than the state has.

    Source: Geiger et al. 2024, arXiv 2303.02536 (distributed alignment search). Departures: the
    rotation is the Q of a QR decomposition, and the loss compares the given answers only.
    """
    rows = rows_of(model, prompts)
    values = list(values)
    tokens = _answers(model, values, answers, len(rows))
    n, steps = checked(Count, n, "exchanges"), checked(Count, steps, "steps")
    dim = checked(Count, dim, "dimensions")
    if not 0 <= layer < model.n_layers or position >= 0 or dim > model.d_model:
        found = f"{model.n_layers} layers, {model.d_model} dimensions"
        do = "give a layer from 0, a token from the end such as -1, and fewer dimensions"
        raise InterpError(f"a subspace of {dim} at layer {layer}, token {position}", found, do)
    rng = np.random.default_rng(seed)
    codes = np.array([list(tokens).index(value) for value in values])
    half = _halves(codes, rng)
    setting = {"layer": layer, "position": position, "tokens": list(tokens.values())}
    total, done = steps * (2 + untrained), 0

    def told(step: int) -> None:
        if progress is not None:
            progress(done + step, total)

    found = _fitted(model, rows, codes, half, n, dim, steps, rate, rng, told, **setting)
    tests = [found.test("fitted", found.rows)]
    drawn = torch.linalg.qr(torch.from_numpy(rng.standard_normal((model.d_model, dim))))[0].T
    decoder = model.require_decoder("a subspace")
    reads = decoder.unembed[setting["tokens"]].double() * decoder.ln_final.weight.double()
    rivals = {
        "random": drawn,
        "means": _differences(found.means()),
        "unembedding": _differences(reads.cpu()),
        "whole state": torch.eye(model.d_model, dtype=torch.float64),
    }
    tests += [found.test(name, subspace) for name, subspace in rivals.items()]
    done = steps
    shuffled = np.concatenate([rng.permutation(codes[half == side]) for side in (0, 1)])
    dealt = np.empty_like(codes)
    dealt[np.concatenate([np.flatnonzero(half == side) for side in (0, 1)])] = shuffled
    other = _fitted(model, rows, dealt, half, n, dim, steps, rate, rng, told, **setting)
    tests.append(other.test("other labels", other.rows))
    if untrained:
        done, random = 2 * steps, reinitialised(model, seed=seed)
        blank = _fitted(random, rows, codes, half, n, dim, steps, rate, rng, told, **setting)
        tests.append(blank.test("untrained", blank.rows))
    return CausalVariable(
        model=model.name, model_hash=model.hash, layer=layer, position=position,
        rows=found.rows, loss=found.loss, tests=tuple(tests),
    )  # fmt: skip


def _answers(
    model: LanguageModel, values: list[Any], answers: Mapping[Any, str | int], n: int
) -> dict[Any, int]:
    """The token of each value."""
    asked = f"a subspace for {len(values)} values of {n} prompts"
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    if len(values) != n or len(counts) < 2 or min(counts.values(), default=0) < 4:
        do = "give one value for each prompt, two values or more, four prompts of each"
        raise InterpError(asked, f"prompts of each value: {counts}", do)
    if missing := [value for value in counts if value not in answers]:
        raise InterpError(asked, f"no answer for {missing}", "give an answer for each value")
    tokens = {value: model.single_token(answers[value], "answer") for value in counts}
    if len({*tokens.values()}) < len(tokens):
        raise InterpError(asked, f"equal answers: {tokens}", "give a token of its own to each")
    return tokens


def _halves(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(prompts,) 0 for the half that fits, 1 for the half that tests; both have every value."""
    half = np.zeros(len(codes), dtype=int)
    for code in np.unique(codes):
        own = rng.permutation(np.flatnonzero(codes == code))
        half[own[len(own) // 2 :]] = 1
    return half


def _exchanges(
    codes: np.ndarray, chosen: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Base and source of n exchanges, the first half between different values."""
    base, source = [], []
    for number in range(n):
        one = rng.choice(chosen)
        differs = codes[chosen] != codes[one]
        pool = chosen[differs] if number < n // 2 else chosen[~differs & (chosen != one)]
        base.append(one)
        source.append(rng.choice(pool))
    return np.array(base), np.array(source)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """A fitted subspace, and what tests others on the same exchanges."""

    rows: Tensor
    loss: np.ndarray
    test: Callable[[str, Tensor], SubspaceTest]
    means: Callable[[], Tensor]


def _fitted(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    codes: np.ndarray,
    half: np.ndarray,
    n: int,
    dim: int,
    steps: int,
    rate: float,
    rng: np.random.Generator,
    told: Callable[[int], None],
    *,
    layer: int,
    position: int,
    tokens: list[int],
) -> _Fit:
    """Fit a subspace on one half's exchanges."""
    runs = keep_runs(model, prompts, last=-position, whole=True)
    if runs is None:
        what = "the plain runs do not fit the budget of 4 GB"
        raise InterpError("a subspace", what, "give fewer or shorter prompts")
    states = runs.read([(layer, SITE)])[layer, SITE][:, position].detach()
    sides = [_exchanges(codes, np.flatnonzero(half == side), n, rng) for side in (0, 1)]

    def logits(side: int, subspace: Tensor) -> Tensor:
        """(n, answers) of the exchanges of a half."""
        base, source = sides[side]
        return _exchanged(runs, base, states[source], subspace, layer, position)[:, tokens]

    start = torch.from_numpy(rng.standard_normal((model.d_model, dim))).to(states)
    weight = (start / start.norm(dim=0)).requires_grad_(True)
    adam, curve = torch.optim.Adam([weight], lr=rate), []
    wanted = torch.from_numpy(codes[sides[0][1]]).to(states.device)
    with torch.enable_grad():
        for step in range(steps):
            subspace = torch.linalg.qr(weight)[0].T
            loss = torch.nn.functional.cross_entropy(logits(0, subspace).float(), wanted)
            adam.zero_grad()
            loss.backward()
            adam.step()
            curve.append(float(loss.detach()))
            told(step + 1)
    rows = torch.linalg.qr(weight.detach().double())[0].T.cpu()

    def test(name: str, subspace: Tensor) -> SubspaceTest:
        with torch.no_grad():
            said = logits(1, subspace.to(states)).argmax(-1).cpu().numpy()
        right = said == codes[sides[1][1]]
        differs = codes[sides[1][0]] != codes[sides[1][1]]
        return SubspaceTest(
            name=name,
            dim=len(subspace),
            changed=share_estimate(int(right[differs].sum()), int(differs.sum())),
            kept=share_estimate(int(right[~differs].sum()), int((~differs).sum())),
        )

    def means() -> Tensor:
        fitting = half == 0
        every = [states[torch.from_numpy(fitting & (codes == code))] for code in np.unique(codes)]
        return torch.stack([one.double().mean(0) for one in every]).cpu()

    return _Fit(rows=rows, loss=np.array(curve), test=test, means=means)


def _exchanged(
    runs: StoredRuns, base: np.ndarray, source: Tensor, subspace: Tensor, layer: int, position: int
) -> Tensor:
    """(exchanges, d_vocab) logits of base prompts whose state takes a subspace from the sources."""
    found: list[Tensor] = []
    order: list[np.ndarray] = []
    for block, plain in runs.blocks:
        place = {prompt: at for at, prompt in enumerate(block.tolist())}
        mine = np.array([i for i, prompt in enumerate(base.tolist()) if prompt in place])
        if not len(mine):
            continue
        numbers = torch.from_numpy(mine).to(source.device)

        def value(old: Tensor, tokens: Tokens, numbers: Tensor = numbers) -> Tensor:
            moved = (source[numbers[tokens.prompts]] - old) @ subspace.T @ subspace
            return old + moved

        some = np.array([place[base[i]] for i in mine])
        taken = plain.of_prompts(some)
        at = tuple((taken.lengths + position).tolist())
        edit = Edit(name="exchange", layer=layer, site=SITE, value=value, positions=at)
        change = Change(name="exchange", edits=(edit,))
        states = changed_states(runs.runner, taken, [change], np.arange(len(mine)))[0]
        found.append(states)
        order.append(mine)
    back = torch.from_numpy(np.argsort(np.concatenate(order))).to(source.device)
    return runs.runner.decoder.logits(torch.cat(found)[back])


def _differences(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span the differences of some vectors."""
    apart = (vectors - vectors.mean(0)).double()
    _, sizes, rows = torch.linalg.svd(apart, full_matrices=False)
    return rows[sizes > 1e-9 * sizes.max()]
