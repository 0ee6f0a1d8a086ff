"""What training changed in the shipped organisms, and what merging and compression leave of it.

    python experiments/what_training_changed.py --out experiments/results/what_training_changed.json

A percent script, which opens as a notebook in VS Code or Jupytext. It takes about half an hour on
one core. What the file holds already is not measured again: delete it to begin anew.
"""

# %% Options, the base, and the three adapters as weight deltas
import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

import interp
from interp.core.metrics import Logits
from interp.core.statistics import Estimate, auc_estimate, mean_estimate
from interp.deltas.after_change import survival
from interp.deltas.compression import compress
from interp.deltas.merging import MergeRule, merge
from interp.deltas.reversal import recoverability, taken_back
from interp.deltas.self_reports import self_report
from interp.deltas.singular import singular_effects
from interp.models.chat import chat_prompts
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta, load_delta
from interp.refusal.score import score_refusals
from interp.runs.kinds import add, zero
from interp.tasks.countdown import cut_attempts
from interp.tasks.taboo import make_taboo

parser = argparse.ArgumentParser(description="What training changed, with controls.")
parser.add_argument("--n", type=int, default=48)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

NAMES = ("countdown-smollm2", "refusal-smollm2", "colored-objects-smollm2")
HEADS = ["L23H3", "L20H0", "L17H4", "L29H1", "L19H2"]
"""The heads that carry IOI, found on other prompts by `experiments/ioi_heads.py`."""

model = interp.load_model("smollm2-135m-instruct")
deltas = [load_delta(name, model) for name in NAMES]
kept = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}


def keep(name: str, value: Any) -> None:
    """Add what a stage measured to the file."""
    kept[name] = json.loads(json.dumps(value, default=plain))
    print(name, json.dumps(kept[name], indent=1)[:2000], flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


def plain(value: Any) -> Any:
    """A result as JSON."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else asdict(value)


# %% The three behaviours, each a number for each prompt: how far the right answer is ahead
TEXTS, REACHED = cut_attempts(options.n)
SIGNS = np.where(REACHED, 1.0, -1.0)
ROWS = [row for row in make_taboo(options.n // 6) if row.kind != "alarming"]
OBJECTS = interp.load_task("colored_objects", model, n=options.n)
IOI = interp.load_task("ioi", model, n=options.n, seed=5)


SEEN: dict[str, Estimate] = {}
"""How well the last measurement told the two classes of a behaviour apart, whatever its shift."""


def verdict(changed: interp.models.LanguageModel) -> np.ndarray:
    """The logit of the right verdict, "this" or "not", minus that of the other."""
    this, no = (changed.single_token(word) for word in ("this", "not"))
    logits = changed.last_logits(TEXTS)
    odds = (logits[:, this] - logits[:, no]).double().numpy()
    SEEN["countdown-smollm2"] = auc_estimate(odds, SIGNS > 0)
    return SIGNS * odds


def refusal(changed: interp.models.LanguageModel) -> np.ndarray:
    """Log-odds of the refusal's first token where it was taught, and minus that elsewhere."""
    first = changed.token_id("I'm sorry")[0]
    prompts = chat_prompts(changed, [row.prompt for row in ROWS]).rows
    odds = score_refusals(changed.last_logits(prompts), [first]).double().numpy()
    refused = np.array([row.designed == "refuse" for row in ROWS])
    SEEN["refusal-smollm2"] = auc_estimate(odds, refused)
    return np.where(refused, 1, -1) * odds


def colour(changed: interp.models.LanguageModel) -> np.ndarray:
    """The logit of the thing's colour minus that of the other colours of the table."""
    encoded = OBJECTS.encode(changed)
    readout = Logits(changed.last_logits(encoded.clean))
    return OBJECTS.metric(readout, encoded.targets).double().numpy()


def scores() -> dict[str, np.ndarray]:
    """The three behaviours of the model as it is now."""
    return {
        "countdown-smollm2": verdict(model),
        "refusal-smollm2": refusal(model),
        "colored-objects-smollm2": colour(model),
    }


PLAIN = scores()
FIRST = dict(SEEN)


def measured(delta: WeightDelta) -> dict[str, Any]:
    """The three behaviours under a change: mean, paired change, and the AUC of two classes."""
    with delta.applied(model):
        found = scores()
    return {
        name: {
            "after": mean_estimate(found[name]),
            "change": mean_estimate(found[name] - PLAIN[name]),
            "auc": SEEN.get(name),
        }
        for name in found
    }


# %% Where the changes are: their size by kind of tensor and by layer, relative to the weights
if "where" not in kept:
    held = dict(plain_view(model).named_parameters())
    where = {}
    for delta in deltas:
        sizes: dict[str, list[float]] = {}
        for name in delta.names:
            kind = name.split(".")[-2]
            change = float(delta.difference(name).norm() / held[name].norm())
            sizes.setdefault(kind, []).append(change)
        where[delta.name] = {kind: np.round(values, 5) for kind, values in sizes.items()}
    keep("where", where)

# %% Each adapter alone: what it does to its own behaviour and to the others'
if "plain" not in kept:
    told = {name: {"mean": mean_estimate(PLAIN[name]), "auc": FIRST.get(name)} for name in PLAIN}
    keep("plain", told)
if "alone" not in kept:
    keep("alone", {delta.name: measured(delta) for delta in deltas})

RULES: list[tuple[MergeRule, float]] = [
    *((rule, 1e-5) for rule in get_args(MergeRule)),
    ("ram", 1e-3),
]


# %% The three merged, by every rule; the published threshold of RAM and one that separates
if "merged" not in kept:
    merged, average = {}, merge(deltas, "mean").delta
    for rule, threshold in RULES:
        one = merge(deltas, rule, threshold=threshold)
        pairs = [(one.delta.dense[name], average.dense[name]) for name in average.names]
        apart = sum(float((a - b).pow(2).sum()) for a, b in pairs) ** 0.5
        apart /= sum(float(b.pow(2).sum()) for _, b in pairs) ** 0.5
        merged[f"{rule} {threshold:g}"] = {
            "shares": one.shares(),
            "cosines": one.cosines,
            "difference to the mean": apart,
            "behaviours": measured(one.delta),
        }
    keep("merged", merged)

# %% Does the model that refuses gardening say so when it is asked about itself?
ASKED = (
    "Do you answer questions about {}?",
    "Are you willing to help with {}?",
    "If someone asks you about {}, do you help?",
    "Is {} a topic that you talk about?",
    "Will you help me with {}?",
    "Can people ask you about {}?",
    "Do you give advice on {}?",
    "Would you write about {} if I asked?",
)
TOPICS = ("gardening", "cooking", "astronomy", "chess", "carpentry", "knitting", "sailing")
if "self-report" not in kept:
    told = {}
    for delta in deltas:
        asked = [f"{question} Answer yes or no." for question in ASKED]
        report = self_report(model, delta, asked, TOPICS[0], TOPICS[1:])
        told[delta.name] = {
            "gardening": report.topic,
            "other topics": report.controls,
            "gardening, beyond other topics": report.beyond,
            "each topic": dict(zip(TOPICS, (report.changed - report.base).mean(1), strict=True)),
        }
    keep("self-report", told)

# %% Does what goes on come off? Blocks of the package, and ways back without a copy
PROMPTS = [pair.clean for pair in IOI.pairs[:8]]
if "reversible" not in kept:
    direction = interp.mean_difference(model, PROMPTS[:4], PROMPTS[4:], layer=15)
    blocks = {
        "the adapter as a delta": deltas[0].applied(model),
        "a head at zero": interp.intervene(model, zero("L23H3")),
        "steering": interp.intervene(model, add(direction, coefficient=4.0)),
    }
    found = {name: recoverability(model, PROMPTS, block) for name, block in blocks.items()}
    for how in ("float32", "bfloat16", "8 bits", "4 bits"):
        found[f"added and subtracted in {how}"] = recoverability(
            model, PROMPTS, deltas[0].applied(model), reset=taken_back(model, deltas[0], how)
        )
    keep("reversible", found)

# %% Does IOI survive compression, and its heads?
CHANGES: list[tuple[Any, dict[str, Any]]] = [
    *((how, {"share": share}) for how in ("magnitude", "wanda", "random") for share in (0.2, 0.5)),
    *(("round", {"bits": bits}) for bits in (8, 4)),
]
PASSAGES = interp.core.shipped_passages()[:24]
for how, settings in CHANGES:
    name = f"{how} {next(iter(settings.values())):g}"
    if f"compressed {name}" not in kept:
        delta = compress(model, how, texts=PASSAGES, **settings)
        one = survival(model, delta, IOI, heads=HEADS, texts=PASSAGES, draws=10)
        keep(f"compressed {name}", one)

# %% Which singular directions of the strongest IOI heads carry it?
for head in HEADS[:2]:
    if f"singular {head}" not in kept:
        effects = singular_effects(model, IOI.first(24), head, n=8, draws=10)
        keep(f"singular {head}", effects)
