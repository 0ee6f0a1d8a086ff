"""Does a lens other than the logit lens predict what later layers write, and do its swaps work?

    python experiments/lenses.py --out docs/results/lenses.json

It takes about five minutes on one core.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import interp
from interp.core.corpus import shipped_passages
from interp.core.files import versions
from interp.core.statistics import Estimate, share_estimate
from interp.probing.lens_swaps import known_cases, swap_answers
from interp.probing.lens_tests import MEASURES, lens_prediction
from interp.probing.patchscopes import patchscope
from interp.results.provenance import commit, resumed
from interp.tasks.word_pairs import word_tasks

parser = argparse.ArgumentParser(description="Lenses of the default model, with their controls.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--steps", type=int, default=20, help="steps of training of the tuned lens")
parser.add_argument("--tuned", type=int, nargs="+", default=[18, 26])
parser.add_argument("--words", type=int, default=6, help="words of the patchscopes")
parser.add_argument("--stages", nargs="+", default=["swaps", "jacobian", "tuned", "patchscopes"])
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
passages = shipped_passages()
seen, unseen = passages[:72], passages[72:]
unsaid = {"out", "stages"}
settings = {name: value for name, value in vars(options).items() if name not in unsaid}
partly = options.out if len(options.stages) < 4 else None  # the other stages stay in the file
kept = resumed(partly, **settings, model_hash=model.hash)


def keep(**stage):
    """Add what a stage measured to the file."""
    kept.update(stage)
    print(*stage.items(), sep="\n", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def told(estimate: Estimate) -> list[float]:
    """Mean and interval."""
    return [round(x, 4) for x in (estimate.mean, estimate.low, estimate.high)]


def prediction(maps):
    """Every measure on unseen passages, of the lens, its controls and centred lenses; its gains."""
    centred = {
        f"centred {name}": interp.probing.centre_lens(model, one, seen)
        for name, one in {
            maps.kind: maps,
            "identity": interp.probing.identity_lens(model, maps.layers),
            "shuffled layers": maps.shuffled(),
        }.items()
    }
    found = lens_prediction(model, unseen, maps, others=centred)
    own = "centred " + maps.kind
    at = found.lenses.index(own)
    gains = {}
    for measure in MEASURES:
        gains[measure] = {
            lens: {layer: told(found.gain(measure, layer, lens)) for layer in found.layers}
            for lens in found.lenses[1:]
        }
        # The centred lens beside the other two that are centred alike.
        moved = replace(
            found,
            lenses=(own, *(lens for lens in found.lenses if lens != own)),
            **{
                name: np.concatenate([whole[at : at + 1], np.delete(whole, at, 0)])
                for name in ("kl", "agreement", "gained", "written")
                for whole in [getattr(found, name)]
            },
        )
        gains[measure] |= {
            f"{own} beyond {lens}": {
                layer: told(moved.gain(measure, layer, lens)) for layer in found.layers
            }
            for lens in ("identity", "centred identity", "centred shuffled layers")
        }
    return {
        "n": len(unseen),
        "tokens": found.n_tokens,
        "measures": {
            measure: {
                lens: {layer: told(found.estimate(measure, layer, lens)) for layer in found.layers}
                for lens in found.lenses
            }
            for measure in MEASURES
        },
        "beyond": gains,
    }


jacobian = interp.probing.shipped_lens(model)
keep(
    command="python experiments/lenses.py --out docs/results/lenses.json",
    options={name: value for name, value in vars(options).items() if name != "out"},
    model=model.name,
    model_hash=model.hash,
    versions=versions(),
    commit=commit(),
    jacobian={
        "n": list(jacobian.n),
        "halves_disagree": dict(
            zip(jacobian.layers, jacobian.disagreement.round(3).tolist(), strict=True)
        ),
    },
)

(capital,) = word_tasks("capital", model)
cases = known_cases(model, "The capital of {} is", capital.pairs)
if "swaps" in options.stages:
    swaps = {}
    for gauge in ("centred", "raw"):
        for strength in (1.0, 2.0):
            found = swap_answers(model, cases, jacobian, gauge=gauge, strength=strength)
            swaps[f"{gauge}, strength {strength:g}"] = {
                "moved": {
                    lens: {layer: told(found.estimate(layer, lens)) for layer in found.layers}
                    for lens in found.lenses
                },
                "beyond": {
                    lens: {layer: told(found.gain(layer, lens)) for layer in found.layers}
                    for lens in found.lenses[1:]
                },
                "turned": {
                    lens: {layer: told(found.share(layer, lens)) for layer in found.layers}
                    for lens in found.lenses
                },
            }
            keep(swaps={"cases": [case.prompt for case in cases], **swaps})

if "jacobian" in options.stages:
    keep(jacobian_prediction=prediction(jacobian))

if "tuned" in options.stages:
    tuned = interp.probing.fit_tuned_lens(
        model,
        seen,
        layers=options.tuned,
        steps=options.steps,
        corpus="72 in-house passages",
        progress=lambda done, total: print(f"{done} of {total} maps", flush=True),
    )
    keep(
        tuned={
            "n": list(tuned.n),
            "options": dict(tuned.options),
            "halves_disagree": dict(
                zip(tuned.layers, tuned.disagreement.round(3).tolist(), strict=True)
            ),
        },
        tuned_prediction=prediction(tuned),
    )

if "patchscopes" in options.stages:
    layers = [8, 14, 20]
    words = [str(case.source).strip() for case in cases[: options.words]]
    rows = {}
    for i, word in enumerate(words):
        other = f"People in{cases[(i + 1) % len(cases)].source}"
        found = patchscope(
            model, f"People in {word}", layers=layers, into=2, others=[other], max_new_tokens=4
        )
        rows[word] = {"plain": found.plain, **found.texts}
    named = {
        of: {
            layer: told(
                share_estimate(
                    sum(word.lower() in rows[word][of][at].lower() for word in words), len(words)
                )
            )
            for at, layer in enumerate(layers)
        }
        for of in next(iter(rows.values()))
        if of != "plain"
    }
    keep(patchscopes={"n": len(words), "into": 2, "names_the_word": named, "texts": rows})
