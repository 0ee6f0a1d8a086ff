"""Simulations that test whether p-values and intervals are calibrated.

    python experiments/calibration.py --out experiments/results/calibration.json

For noise without any effect, they measure the share of p-values that are at most .05. For effects
of known size, they measure how often a 95 % interval covers it. This takes about twelve minutes on
two cores. The tests run the same functions with fewer repetitions. With four prompts p is at least
1/16, so tables of p begin with five prompts.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from interp.circuits.evaluation.faithfulness import Faithfulness
from interp.core.files import write_atomically
from interp.core.nulls import flip_test
from interp.core.records import Provenance
from interp.core.statistics import bootstrap_weights, ratio_of_means
from interp.refusal.over_refusal import paired_difference
from interp.results.scores import Scores

FROM = Provenance(
    model="", model_hash="", dtype="", task="", task_hash="", seed=None, versions={}, commit=None,
    call="",
)  # fmt: skip
LAYERS, HEADS = 12, 9
KS = (1, 5, 10)
SIZES = (5, 8, 16, 64)
NOISES = ("equal", "unequal", "gaps vary", "correlated", "grouped", "skewed")
EFFECTS = ("normal", "normal, gaps vary", "skewed gaps", "exponential", "log-normal")
CURVES = {
    "as the model": np.ones(8),
    "rising": np.array([0.0, 0.3, 0.6, 0.8, 0.9, 0.97, 1.0, 1.0]),
    "beyond the model": np.array([0.0, 0.5, 1.1, 1.25, 1.2, 1.1, 1.0, 1.0]),
}


# %% p-values
def noise(
    kind: str, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[int] | None]:
    """(n, layers, heads) effects with mean 0, (n,) gaps, and the groups to flip together.

    equal: normal effects. unequal: the heads' standard deviations differ (log-normal, 1). gaps
    vary: the gaps of prompts are gamma distributed (mean 1, standard deviation 1/2), and effects
    are proportional to them; in all other cases gaps are 1. correlated: all heads of a prompt share
    half of their variance. grouped: for each head, prompts of one text share half of their
    variance; there are n texts of four prompts. skewed: exponential minus its mean, which violates
    the symmetry that sign flips assume.
    """
    shape, gaps = (n, LAYERS, HEADS), np.ones(n)
    if kind == "skewed":
        return rng.exponential(size=shape) - 1, gaps, None
    values = rng.standard_normal(shape)
    if kind == "unequal":
        values = values * np.exp(rng.standard_normal(shape[1:]))
    if kind == "gaps vary":
        gaps = rng.gamma(4, 0.25, n)
        values = values * gaps[:, None, None]
    if kind == "correlated":
        values = values + rng.standard_normal((n, 1, 1))
    if kind == "grouped":
        values = np.repeat(values, 4, 0) + rng.standard_normal((4 * n, *shape[1:]))
        return values, np.ones(4 * n), np.repeat(np.arange(n), 4).tolist()
    return values, gaps, None


def scores_of(effects: np.ndarray, gaps: np.ndarray) -> Scores:
    """`Scores` over layers and heads, for prompts with these gaps."""
    n, layers, heads = effects.shape
    return Scores(
        effects=effects,
        clean=gaps,
        corrupted=np.zeros(n),
        axes=("layer", "head"),
        coordinates={
            "layer": tuple(map(str, range(layers))), "head": tuple(map(str, range(heads)))
        },
        site="z", direction="denoise", method="simulated", metric="", metric_unit="",
        positions="", provenance=FROM,
    )  # fmt: skip


def selections(
    kind: str, n: int, k: int, repeats: int, *, draws: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """(repeats,) p of `Scores.null` on noise, and whether it warns of skewed effects."""
    rng, found = np.random.default_rng([n, k, NOISES.index(kind)]), []
    for _ in range(repeats):
        values, gaps, groups = noise(kind, n, rng)
        seed = int(rng.integers(2**31))
        test = scores_of(values, gaps).null(k, groups=groups, draws=draws, seed=seed)
        found.append((test.flips.p, test.skewed))
    p, skewed = np.array(found).T
    return p, skewed


def held_out(effects: np.ndarray, k: int, draws: int, seed: int) -> float:
    """An alternative that the package does not use: select on one half, test on the other."""
    flat, half = effects.reshape(len(effects), -1), len(effects) // 2
    chosen = np.argsort(-flat[:half].mean(0))[:k]
    unseen = flat[half:][:, chosen].mean(1)
    return flip_test(lambda signs: signs @ unseen, len(unseen), draws=draws, seed=seed).p


def power(n: int, repeats: int, *, draws: int = 200) -> dict[str, float]:
    """How often p <= .05 for k = 1, if three heads have effect 1 in standard normal noise."""
    rng, found = np.random.default_rng(n), []
    for seed in range(repeats):
        values, gaps, _ = noise("equal", n, rng)
        values[:, :3, 0] += 1
        taken = scores_of(values, gaps).null(1, draws=draws, seed=seed).flips.p
        found.append((taken <= 0.05, held_out(values, 1, draws, seed) <= 0.05))
    both = np.mean(found, axis=0).tolist()
    return dict(zip(("all flipped, selected anew", "selected on one half"), both, strict=True))


def paired(bases: int, rows: int, repeats: int) -> np.ndarray:
    """(repeats,) p for two equal rates; rows of one base text are correlated."""
    rng, found = np.random.default_rng([bases, rows]), []
    for _ in range(repeats):
        tendency = rng.random((bases, 1, 2)) if rows > 1 else np.full((bases, 1, 2), 0.5)
        seen = (rng.random((bases, rows, 2)) < tendency).astype(float).reshape(-1, 2)
        names = [str(i // rows) for i in range(bases * rows)]
        found.append(paired_difference(*seen.T, bases=names).p)
    return np.array(found)


# %% Intervals
def effects_of(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(n,) effects and gaps, with ratio 1/2 of their means."""
    gaps = 2 + (1.0 if kind == "normal, gaps vary" else 0.5) * rng.standard_normal(n)
    if kind == "skewed gaps":
        gaps = rng.gamma(4, 0.5, n)
        return gaps * rng.beta(2, 2, n), gaps
    if kind == "exponential":
        return rng.exponential(size=n), gaps
    if kind == "log-normal":
        return np.exp(rng.standard_normal(n) - 0.5), gaps
    return 1 + rng.standard_normal(n), gaps


Interval = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def ours(part: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """The interval that the package reports."""
    found = ratio_of_means(part, whole)
    return float(found.low), float(found.high)


def student(part: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """The delta method with Student's t, without a correction for skew."""
    found = ratio_of_means(part, whole)
    half = stats.t.ppf(0.975, len(part) - 1) * found.stderr
    return float(found.values - half), float(found.values + half)


def fieller(part: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """All ratios r for which Student's t-test does not reject mean(part - r whole) = 0."""
    t = stats.t.ppf(0.975, len(part) - 1) ** 2 / len(part)
    (a, c), (_, b) = np.cov(part, whole)
    one, other = part.mean(), whole.mean()
    square, mixed, rest = other**2 - t * b, one * other - t * c, one**2 - t * a
    if square <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(mixed**2 - square * rest, 0))
    return (mixed - root) / square, (mixed + root) / square


def resampled(
    part: np.ndarray, whole: np.ndarray, *, method: str = "percentile", draws: int = 500
) -> tuple[float, float]:
    """A bootstrap interval: percentile, studentised or BCa."""
    if method == "BCa":
        ends = stats.bootstrap(
            (part, whole), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True,
            method="BCa", n_resamples=draws, rng=0, vectorized=True,
        ).confidence_interval  # fmt: skip
        return ends.low, ends.high
    weights = bootstrap_weights(len(part), draws) / len(part)
    means = weights @ np.stack([part, whole, part**2, part * whole, whole**2], 1)
    ratios = means[:, 0] / means[:, 1]
    if method == "percentile":
        low, high = np.quantile(ratios, [0.025, 0.975])
        return low, high
    spread = means[:, 2] - 2 * ratios * means[:, 3] + ratios**2 * means[:, 4]
    errors = np.sqrt(np.maximum(spread, 0) / (len(part) - 1)) / np.abs(means[:, 1])
    own = ratio_of_means(part, whole)
    t = (ratios - own.values)[errors > 1e-12] / errors[errors > 1e-12]
    low, high = own.values - np.quantile(t, [0.975, 0.025]) * own.stderr
    return float(low), float(high)


INTERVALS: dict[str, Interval] = {
    "ratio_of_means": ours,
    "delta, Student's t": student,
    "Fieller": fieller,
    "percentile bootstrap": resampled,
    "studentised bootstrap": partial(resampled, method="studentised"),
    "BCa": partial(resampled, method="BCa"),
}


def coverage(interval: Interval, kind: str, n: int, repeats: int) -> float:
    """How often an interval covers the true ratio."""
    rng, hits = np.random.default_rng([n, EFFECTS.index(kind)]), 0
    for _ in range(repeats):
        low, high = interval(*effects_of(kind, n, rng))
        hits += bool(low <= 0.5 <= high)
    return hits / repeats


def areas(kind: str, n: int, shared: float, repeats: int) -> dict[str, float]:
    """How often CMD's interval covers the truth and its own estimate.

    `shared` is the share of the noise variance that all sizes of a circuit have in common.
    """
    curve, rng = CURVES[kind], np.random.default_rng([n, len(kind)])
    fractions = np.geomspace(0.001, 1, len(curve))
    steps = np.diff(fractions)
    far = np.abs(1 - curve)
    true, hits, own = float(((far[1:] + far[:-1]) / 2) @ steps), 0, 0
    for _ in range(repeats):
        gaps = 2 + 0.6 * rng.standard_normal(n)
        common, each = rng.standard_normal(n), rng.standard_normal((len(curve), n))
        rest = np.sqrt(shared) * common + np.sqrt(1 - shared) * each
        rest[-1] = 0  # with every edge kept the circuit is the model
        found = Faithfulness(
            fractions=fractions, values=curve[:, None] * gaps + 0.6 * rest, full=gaps,
            empty=np.zeros(n), random=np.zeros((0, len(curve), n)), protocol="", metric="",
            metric_unit="", provenance=FROM,
        ).cmd(draws=400)  # fmt: skip
        hits += found.low <= true <= found.high
        own += found.low <= found.mean <= found.high
    return {"truth": hits / repeats, "estimate": own / repeats}


# %% Tables
Table = dict[str, list[float]]


def share(p: np.ndarray) -> float:
    """The share of p-values that are at most .05."""
    return float((p <= 0.05).mean())


def selected(kind: str, repeats: int) -> dict[str, Table]:
    """For each k, the shares of p <= .05 and of skew warnings, at each number of prompts."""
    tables: dict[str, Table] = {"p <= .05": {}, "said to be skewed": {}}
    for k in KS:
        each = [selections(kind, n, k, repeats) for n in SIZES]
        tables["p <= .05"][f"k = {k}"] = [share(p) for p, _ in each]
        tables["said to be skewed"][f"k = {k}"] = [float(skewed.mean()) for _, skewed in each]
    return tables


def powers(repeats: int) -> dict[str, Table]:
    """The power of both designs, at each number of prompts."""
    each = [power(n, repeats) for n in SIZES]
    return {"p <= .05": {key: [x[key] for x in each] for key in each[0]}}


def pairs(repeats: int) -> dict[str, Table]:
    """The share of p <= .05 for each design."""
    designs = ((8, 10), (20, 4), (80, 1))
    return {
        "p <= .05": {
            f"{n} texts x {rows}": [share(paired(n, rows, repeats))] for n, rows in designs
        }
    }


def covered(kind: str, repeats: int) -> dict[str, Table]:
    """The coverage of each method, at each number of prompts."""
    table = {
        method: [coverage(interval, kind, n, repeats) for n in FEWER]
        for method, interval in INTERVALS.items()
    }
    return {"coverage": table}


def area_covered(repeats: int) -> dict[str, Table]:
    """The coverage for each curve and share of common noise, at each number of prompts."""
    tables: dict[str, Table] = {"truth": {}, "estimate": {}}
    for kind in CURVES:
        for shared, words in ((0.0, "apart"), (0.8, "shared")):
            each = [areas(kind, n, shared, repeats) for n in SIZES]
            for of, table in tables.items():
                table[f"{kind}, {words}"] = [found[of] for found in each]
    return tables


FEWER = (3, *SIZES)
PARTS: dict[str, tuple[Sequence[object], Callable[[int], dict[str, Table]]]] = {
    **{f"Scores.null on noise, {kind}": (SIZES, partial(selected, kind)) for kind in NOISES},
    "Power, three heads of 108 with an effect": (SIZES, powers),
    "Paired rates without a difference": (["share"], pairs),
    **{f"95 % intervals, {kind}": (FEWER, partial(covered, kind)) for kind in EFFECTS},
    "CMD's 95 % interval holds": (SIZES, area_covered),
}
"""For each title, the columns (numbers of prompts, or texts) and the function for its tables."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulations, print their tables, and save each table as soon as it is done."""
    parser = argparse.ArgumentParser(description="Test the calibration of p-values and intervals.")
    parser.add_argument(
        "--repeats", type=int, default=4000, help="Number of simulations for every entry."
    )
    parser.add_argument("--only", default="", help="Only tables whose title contains this.")
    parser.add_argument("--out", type=Path)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    found: dict[str, Any] = {}
    chosen = {part: each for part, each in PARTS.items() if options.only in part}
    with ProcessPoolExecutor(2) as pool:
        running = {part: pool.submit(fill, options.repeats) for part, (_, fill) in chosen.items()}
        for part, (columns, _) in chosen.items():
            tables = running[part].result()
            for of, rows in tables.items():
                title = f"{part}: {of}"
                found[title] = {"repeats": options.repeats, "columns": list(columns), "rows": rows}
                print(f"\n{title}\n{'':28}" + "".join(f"{column!s:>8}" for column in columns))
                for name, values in rows.items():
                    print(f"{name:28}" + "".join(f"{value:8.3f}" for value in values), flush=True)
            if options.out is not None:
                command = shlex.join(["python", "experiments/calibration.py", *given])
                text = json.dumps({"command": command, "tables": found}, indent=1) + "\n"
                write_atomically(options.out, lambda partial, text=text: partial.write_text(text))


if __name__ == "__main__":
    main()
