"""Do ensembles of edge scores find more, and how stable is a circuit of the default model?

    python experiments/circuit_axes.py --out experiments/results/circuit_axes.json

About eight minutes on one core. The known models are those of `interp circuit recover`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import interp
from interp.circuits.discovery.learned_masks import learn_mask
from interp.circuits.evaluation.stability_axes import stability_axes
from interp.circuits.ground_truth.known_models import known_names, load_known
from interp.circuits.ground_truth.recovery import edge_ground_truth
from interp.circuits.ranking import top_edges
from interp.circuits.scoring.combined_scores import CombinedScores, combine_scores
from interp.circuits.scoring.score_edges import score_edges
from interp.core.files import versions
from interp.results.provenance import commit

METHODS = ("EAP", "EAP-IG-inputs", "EAP-IG-activations", "clean-corrupted")
HOWS = ("rank", "mean", "min", "max")
PAIRS, EDGES = 12, 200


def ensembles() -> dict[str, Any]:
    """The share of the true edges that each method and each ensemble finds, at the truth's size."""
    found: dict[str, Any] = {}
    for name in known_names():
        known = load_known(name)
        model, task = known.model, known.task
        truth = edge_ground_truth(model, task)
        size = int(truth.mask.sum())
        scores = {method: score_edges(model, task, method=method) for method in METHODS}
        every = {**scores, **{how: combine_scores(*scores.values(), how=how) for how in HOWS}}
        found[name] = {
            who: float((top_edges(one, size) & truth.mask).sum() / size)
            for who, one in every.items()
        }
        print(name, found[name], flush=True)
    return found


def warm_masks() -> dict[str, Any]:
    """Edges of a learned mask that differ from toy-and's truth, by steps and by how it begins."""
    known = load_known("toy-and")
    model, task = known.model, known.task
    truth = edge_ground_truth(model, task)
    scores = score_edges(model, task, method="EAP-IG-inputs")
    values = np.random.default_rng(0).normal(size=scores.graph.shape)
    random = CombinedScores(graph=scores.graph, signed=values, how="random", of=1, unit="rank")
    return {
        str(steps): {
            name: int((learn_mask(model, task, steps=steps, lr=0.3, samples=2, start=start).mask
                       ^ truth.mask).sum())
            for name, start in (("alike", None), ("EAP-IG", scores), ("random", random))
        }
        for steps in (8, 12, 20)
    }  # fmt: skip


def axes() -> dict[str, Any]:
    """The five axes for indirect object identification on the default model."""
    model = interp.load_model()
    task = interp.load_task("ioi", model, n=PAIRS, seed=0)
    other = interp.load_task("ioi", model, n=PAIRS, seed=1, variant="other")
    found = stability_axes(model, task, EDGES, wordings=[other])
    print(found, flush=True)
    return {
        "n": found.n,
        "edges": found.circuit.n_edges,
        "of": found.circuit.graph.n_edges,
        "chance": found.circuit.share / (2 - found.circuit.share),
        "axes": {axis.axis: {"what": axis.what, "mean": float(axis.jaccard.mean()),
                             "jaccard": axis.jaccard.tolist()}
                 for axis in found.axes},
        "refused": found.refused,
    }  # fmt: skip


def main() -> None:
    """Measure what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    kept = json.loads(out.read_text()) if out.exists() else {}
    for name, measure in (("ensembles", ensembles), ("masks", warm_masks), ("axes", axes)):
        if name not in kept:
            kept |= {name: measure(), "versions": versions(), "commit": commit()}
            out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
