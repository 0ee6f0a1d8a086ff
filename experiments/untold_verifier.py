"""When does a model in training verify, and by which heads, if only outcomes are rewarded?

    python training/untold.py          # checkpoints of a model that is not told its verdicts
    python training/untold.py --told   # checkpoints of one that is told
    python experiments/untold_verifier.py --out experiments/results/untold_verifier.json

Every checkpoint is judged on the same attempts at held-out problems, written by rule, so that
models that write badly can be compared. The reference is countdown-tiny. What the file holds
already is not measured again: delete it to begin anew.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, t
from transformers import AutoModelForCausalLM, AutoTokenizer

import interp
from interp.core.files import cache_dir, versions
from interp.core.statistics import auc_estimate
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.models.registry import organisms
from interp.results.provenance import commit
from interp.runs.next_tokens import ablate
from interp.runs.text_runs import Generation
from interp.studies.steps import plain, share_of
from interp.studies.verification.settings import VerdictContext, VerificationSettings, make_context
from interp.studies.verification.steps.behaviour import behaviour, countdown_texts
from interp.studies.verification.steps.interchange import (
    ANOTHER,
    OTHER,
    OTHER_SAMPLE,
    OWN,
    interchange,
)
from interp.tasks.countdown import make_countdown, write_drill, write_trace

PROBLEMS, JUDGED, EXCHANGED = 400, 200, 80
"""Problems of the written attempts; samples that are judged, and that are exchanged, half of them
to find."""

OWN_TEXTS, NEW_TOKENS = 60, 160
"""Problems of a checkpoint's own texts, and the most tokens of each."""

WINDOW, STRONG, SETS, PERMUTATIONS = 3, 5, 50, 10_000
"""Tokens exchanged: the result's two digits and " ("; heads of a set; random sets behind each set;
permutations behind each overlap."""

SWAPS = (OTHER, OWN, OTHER_SAMPLE, ANOTHER)
"""Means of the other and of the own verdict's samples; single samples of the other and the own."""

Row = dict[str, Any]


def written_attempts(
    model: LanguageModel, n: int, *, near: bool = False, draws: int = 2
) -> VerdictContext:
    """A context of the verification study whose texts are written by rule.

    The texts are traces of attempts at problems of three numbers. With `near` they are drills, in
    which every wrong result differs from the target in one digit.
    """
    problems, texts = make_countdown(PROBLEMS, operands=(3,), seed=7), []
    for i, problem in enumerate(problems):
        rng = random.Random(i)
        if near:
            text = write_drill(problem.target, rng, attempts=5, near=1.0)
        else:
            text = write_trace(problem, rng, failures=rng.randint(0, 4), in_turn=True)
        head, tail = model.token_id(problem.prompt()), model.token_id(text)
        texts.append(Generation(prompt=head, tokens=tail, text=text, stopped=True, fired=()))
    settings = VerificationSettings(n=n, draws=draws, operands=(3,))
    return make_context(model, None, settings, problems, texts)


def judged(context: VerdictContext) -> Row:
    """How the model judges all samples.

    right: share whose likelier word of the two is the right one. auc: how well log P(this) -
    log P(not) separates the classes. gap: the difference of its class means in nats. chance:
    whether the intervals of `right` and of `auc` hold 1/2.
    """
    ids, sides = context.ids, (context.find, context.test)
    tokens = [text for side in sides for text in side.tokens]
    valid = np.concatenate([side.valid for side in sides])
    odds = ablate(context.model, tokens, [], tokens=[ids.this, ids.no]).log_odds[0]
    found: Row = {"right": share_of((odds > 0) == valid), "auc": plain(auc_estimate(odds, valid))}
    chance = {name: row["low"] <= 0.5 <= row["high"] for name, row in found.items()}
    return found | {"gap": float(odds[valid].mean() - odds[~valid].mean()), "chance": chance}


def parts_of(context: VerdictContext) -> dict[str, Row]:
    """What the exchange of a part's values does, for every head, MLP and layer of the stream.

    For every swap: effect, the change of log P(this) - log P(not) towards the other verdict in
    nats, with its standard error, the mean over valid and invalid test samples; and flipped, the
    share of verdicts that turn, by side. MLPs and the stream get single samples alone.

    breaks: whether samples of the own verdict have an effect: the part carries what the verdict is
    computed from, such as digits. carries: whether samples of the other verdict have a larger
    effect than those of the own verdict: the part carries the verdict. Both at 5 % after
    Bonferroni's correction for the number of parts. The stream behind the last layer is the
    control: it carries every verdict that a model gives.
    """
    model, (_, _, *single) = context.model, SWAPS
    layers = range(model.n_layers)
    heads = [f"L{layer}H{head}" for layer in layers for head in range(model.n_heads)]
    others = [f"L{layer}.{site}" for site in ("mlp_out", "resid_post") for layer in layers]
    beyond = t.ppf(1 - 0.025 / len(heads + others), len(context.test) // 2 - 1)
    rows = {}
    for labels, swaps in ((heads, SWAPS), (others, single)):
        sets = {label: [label] for label in labels}
        found = interchange(context, sets, window=WINDOW, exchanges=swaps)
        for label, one in found["sets"].items():
            row: Row = {
                swap: _both_sides(cells, found["gap"]) for swap, cells in one["exchanges"].items()
            }
            other, own = row[OTHER_SAMPLE], row[ANOTHER]
            errors = np.hypot(other["error"], own["error"])
            row["breaks"] = bool(own["effect"] > beyond * own["error"])
            row["carries"] = bool(other["effect"] - own["effect"] > beyond * errors)
            rows[label] = row
    return rows


def _both_sides(cells: dict[str, Row], gap: float) -> Row:
    """The effect in nats and its standard error over both verdicts, and the flips of each."""
    effects = [cell["effect"] for cell in cells.values()]
    errors = [(x["high"] - x["low"]) / (2 * t.ppf(0.975, x["n"] - 1)) for x in effects]
    return {
        "effect": gap * float(np.mean([x["mean"] for x in effects])),
        "error": abs(gap) * float(np.hypot(*errors)) / 2,
        "flipped": {side: cell["flipped"]["mean"] for side, cell in cells.items()},
    }


def effects_of(parts: dict[str, Row], swap: str = OTHER) -> dict[str, float]:
    """The effect of each head under one swap."""
    return {label: row[swap]["effect"] for label, row in parts.items() if "H" in label}


def strongest(effects: dict[str, float]) -> list[str]:
    """The heads of largest effect."""
    return sorted(sorted(effects, key=effects.__getitem__, reverse=True)[:STRONG])


def measured(model: LanguageModel) -> Row:
    """Own texts, verdicts, near misses, and the parts by their effect on test samples.

    chosen: the strongest heads by the class means' effect on the find samples.
    """
    context = written_attempts(model, EXCHANGED)
    swapped = replace(context, find=context.test, test=context.find)
    problems = make_countdown(OWN_TEXTS, operands=(3,), seed=11)
    texts = countdown_texts(model, problems, max_new_tokens=NEW_TOKENS)
    return {
        "hash": model.hash,
        "behaviour": plain(behaviour(problems, texts)),
        "judged": judged(written_attempts(model, JUDGED)),
        "near": judged(written_attempts(model, JUDGED, near=True)),
        "parts": parts_of(context),
        "chosen": strongest(effects_of(parts_of(swapped))),
    }


def joint(model: LanguageModel, sets: dict[str, list[str]]) -> dict[str, Row]:
    """What sets of heads carry on test samples, beside random heads of the same layers.

    flipped: share of verdicts that turn under every swap, of valid and of invalid samples. random,
    share: what random sets turn with the other class's mean, on fewer samples; and the share of
    them, counting the set, with as large an effect on the same samples, the larger of both sides.
    """
    context = written_attempts(model, EXCHANGED, draws=SETS)
    found = interchange(context, sets, window=WINDOW, exchanges=SWAPS)
    rows: dict[str, Row] = {}
    for name, row in found["sets"].items():
        other = list(row["exchanges"][OTHER].values())
        null = np.mean([cell["flipped_null"] for cell in other], axis=0)
        rows[name] = {
            "heads": row["components"],
            "flipped": {
                swap: {side: cell["flipped"] for side, cell in cells.items()}
                for swap, cells in row["exchanges"].items()
            },
            "random": {"mean": float(null.mean()), "most": float(null.max()), "draws": len(null)},
            "share": max(cell["share"] for cell in other),
        }
    return rows


def overlap(
    one: dict[str, float], other: dict[str, float], *, permutations: int = PERMUTATIONS
) -> Row:
    """Whether two models have the same heads, against permutations of heads within layers.

    spearman: rank correlation of all effects. shared: how many of the `STRONG` strongest are the
    same. Each with the mean of its null and the share of permutations, counting the identity, that
    reach it. The null keeps how strong each layer is.
    """
    labels = sorted(one)
    left, right = (np.array([x[label] for label in labels]) for x in (one, other))
    layers = np.array([label.partition("H")[0] for label in labels])
    rng = np.random.default_rng(0)

    def top(values: np.ndarray) -> set[int]:
        return set(np.argsort(-values)[:STRONG].tolist())

    def compared(values: np.ndarray) -> tuple[float, int]:
        ranks = np.corrcoef(rankdata(left), rankdata(values))
        return float(ranks[0, 1]), len(top(left) & top(values))

    mine, null = compared(right), []
    for _ in range(permutations):
        order = np.arange(len(labels))
        for layer in np.unique(layers):
            at = np.flatnonzero(layers == layer)
            order[at] = rng.permutation(at)
        null.append(compared(right[order]))
    drawn = np.array(null)
    return {
        name: {
            "value": mine[i],
            "null": float(drawn[:, i].mean()),
            "share": float((1 + (drawn[:, i] >= mine[i] - 1e-9).sum()) / (1 + permutations)),
        }
        for i, name in enumerate(("spearman", "shared"))
    }


def opened(folder: Path, name: str) -> LanguageModel:
    """A model of `training/untold.py`; the tokeniser is the same for all."""
    tokenizer = AutoTokenizer.from_pretrained(organisms()["countdown-tiny"])
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return wrap(found, tokenizer, name=name, check=False)


def stages(root: Path, most: int | None = None) -> dict[str, Path]:
    """The folders of one model's checkpoints by stage: supervised steps, then rounds.

    most: how many, evenly spread from the first to the last; all by default. A checkpoint that is
    being written is left out.
    """
    found: dict[str, Path] = {}
    before = 0
    for phase in sorted(root.glob("sft?")):
        saved = {int(path.name.partition("-")[2]): path for path in phase.glob("checkpoint-*")}
        found |= {f"step {before + step}": saved[step] for step in sorted(saved)}
        before += max(saved, default=0)
    rounds = {int(path.name[5:-5]): path for path in root.glob("round*-done")}
    found |= {f"round {number + 1}": rounds[number] for number in sorted(rounds)}
    whole = {name: path for name, path in found.items() if (path / "model.safetensors").exists()}
    if most is None or len(whole) <= most:
        return whole
    kept = {round(at) for at in np.linspace(0, len(whole) - 1, most).tolist()}
    return {name: path for i, (name, path) in enumerate(whole.items()) if i in kept}


def measure_all(
    roots: dict[str, Path], kept: Row, keep: Callable[[], object], most: int | None = None
) -> None:
    """Every stage of every model; then the sets of heads and overlaps of the last stages."""
    last: dict[str, LanguageModel] = {"countdown-tiny": interp.load_model("countdown-tiny")}
    models = kept.setdefault("models", {})
    for name, root in roots.items():
        found = stages(root, most)
        if not found:
            continue
        rows = models.setdefault(name, {"stages": {}})
        for stage, folder in found.items():
            if stage not in rows["stages"]:
                rows["stages"][stage] = measured(opened(folder, name))
                print(name, stage, said(rows["stages"][stage]), flush=True)
                keep()
        if (root / "rounds.json").exists():
            rows["rounds"] = json.loads((root / "rounds.json").read_text())
        rows["last"] = list(found)[-1]
        last[name] = opened(found[rows["last"]], name)
    shipped = models.setdefault("countdown-tiny", {"stages": {}, "last": "shipped"})["stages"]
    if "shipped" not in shipped:
        shipped["shipped"] = measured(last["countdown-tiny"])
        keep()
    ends = {name: models[name]["stages"][models[name]["last"]] for name in last}
    for name, model in last.items():
        names = dict.fromkeys([name, "countdown-tiny"])
        models[name]["joint"] = joint(model, {other: ends[other]["chosen"] for other in names})
        keep()
    kept["overlaps"] = {
        f"{one}, {other}": overlap(effects_of(ends[one]["parts"]), effects_of(ends[other]["parts"]))
        for one, other in combinations(last, 2)
    }
    keep()


def said(row: Row) -> str:
    """One checkpoint in a line."""
    auc, right = row["judged"]["auc"], row["judged"]["right"]
    named = [
        f"{flag} {', '.join(label for label, part in row['parts'].items() if part[flag]) or 'none'}"
        for flag in ("breaks", "carries")
    ]
    solved = row["behaviour"]["solved"]["mean"]
    return (
        f"solved {solved:z.2f}, right {right['mean']:z.2f}, AUC {auc['mean']:z.2f} "
        f"[{auc['low']:z.2f}, {auc['high']:z.2f}], {'; '.join(named)}"
    )


def main() -> None:
    """Measure the checkpoints of some training runs; by default of those in the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of training runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, help="the most checkpoints of each run")
    arguments = parser.parse_args()
    out: Path = arguments.out
    kept = json.loads(out.read_text()) if out.exists() else {}
    kept |= {"versions": versions(), "commit": commit()}
    roots = arguments.runs or sorted((cache_dir() / "training").glob("countdown-*told-*"))
    measure_all(
        {root.name.removeprefix("countdown-"): root for root in roots},
        kept,
        lambda: out.write_text(json.dumps(kept, indent=1) + "\n"),
        arguments.most,
    )


if __name__ == "__main__":
    main()
