"""The peers of `python -m benchmarks circuits`, each of which runs in a separate process.

A comparison of scores gives their rank correlation and largest difference, first as they are, and
then with our scores converted to the peer's convention (`expected`), as a share of the largest
score.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.environments import run_process
from interp.circuits.evaluation.curve_evaluation import FaithfulnessCurves
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.core.files import json_text
from interp.core.prompts import Task
from interp.engine.edges.graph import Graph
from interp.models.language_model import LanguageModel

Log = Callable[[str], None]
MEMORY_AIM, CURVE_AIM = 10, 5


@dataclass(frozen=True, kw_only=True)
class Peers:
    """The peers to run: hannamw/EAP-IG, given its Python and checkout, and TransformerLens."""

    python: Path | None = None
    checkout: Path | None = None
    transformer_lens: bool = True

    @property
    def missing(self) -> str:
        """Why hannamw/EAP-IG cannot be run; empty if it can."""
        if self.python is None or self.checkout is None:
            return "give a Python with TransformerLens 2 (--eap-python) and --eap-checkout"
        absent = [p for p in (self.python, self.checkout / "src" / "eap") if not p.exists()]
        return "".join(f"no {path} " for path in absent).strip()


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Our scores by method, our curve, and the time and memory of each."""

    graph: Graph
    scores: dict[str, EdgeScores]
    curve: FaithfulnessCurves
    measured: dict[str, Any]


def compare_peers(
    ours: Ours, model: LanguageModel, task: Task, folder: Path, peers: Peers, log: Log
) -> dict[str, Any]:
    """Run every peer and compare its results with ours; the folder already holds the model."""
    encoded = task.encode(model)
    assert encoded.corrupted is not None
    targets = torch.cat([encoded.targets.answers[:, :1], encoded.targets.wrong[:, :1]], 1)
    masks = np.stack([circuit.mask for circuit in ours.curve.circuits])
    data = {
        "clean": torch.tensor(encoded.clean),
        "corrupted": torch.tensor(encoded.corrupted),
        "targets": targets,
        "masks": torch.from_numpy(masks).to(torch.uint8),
    }
    save_file({name: t.contiguous() for name, t in data.items()}, folder / "data.safetensors")
    jobs = _jobs(len(task), ours.scores["EAP-IG-inputs"].steps)
    request = {"attributions": jobs, "batch": len(task)}
    (folder / "request.json").write_text(json_text(request), encoding="utf-8")
    found: dict[str, Any] = {}
    if peers.missing:
        log(f"hannamw/EAP-IG is not run: {peers.missing}")
        found["EAP-IG"] = {"absent": peers.missing}
    else:
        log("hannamw/EAP-IG")
        found["EAP-IG"] = _eap_ig(ours, folder, peers, jobs, log)
    if peers.transformer_lens:
        log("TransformerLens, edge attribution, denoise")
        found["TransformerLens"] = _transformer_lens(ours, folder, log)
    found["verdicts"] = verdicts(ours.measured, found)
    for verdict in found["verdicts"].values():
        log(verdict)
    return found


def _jobs(n: int, steps: int) -> dict[str, dict[str, Any]]:
    """The runs of hannamw/EAP-IG: as it is, and without gradients of the weights.

    The last batch of "uneven" is shorter, which shows the effect of its mean over batches.
    """
    jobs: dict[str, dict[str, Any]] = {
        f"EAP, all {n} at once": {"batch": n, "frozen": False},
        f"EAP, all {n} at once, weights frozen": {"batch": n, "frozen": True},
        "EAP, one at a time, weights frozen": {"batch": 1, "frozen": True},
        "EAP, uneven batches, weights frozen": {"batch": n - 1, "frozen": True},
        f"EAP-IG-inputs, all {n} at once, weights frozen": {"batch": n, "frozen": True},
        "EAP-IG-inputs, one at a time, weights frozen": {"batch": 1, "frozen": True},
    }
    for name, job in jobs.items():
        job |= {"method": name.split(",")[0], "steps": steps}
    return jobs


def _eap_ig(
    ours: Ours, folder: Path, peers: Peers, jobs: dict[str, dict[str, Any]], log: Log
) -> dict[str, Any]:
    assert peers.python is not None
    assert peers.checkout is not None
    tensors, told = _run(peers.python, "eap-ig", folder, peers.checkout / "src")
    found: dict[str, Any] = {"commit": _commit(peers.checkout), "versions": told["versions"]}
    for name, job in jobs.items():
        mine = "EAP" if job["method"] == "EAP" else "EAP-IG-inputs, right rule"
        # Its effect is corrupted - clean, and its metric a mean over a batch; the sum over
        # batches is divided by the number of prompts.
        sizes = np.arange(ours.curve.n) // job["batch"]
        weights = -1 / np.bincount(sizes)[sizes]
        found[name] = _versus(told["measured"][name], ours, mine)
        found[name] |= compare(tensors[name].numpy(), ours.scores[mine], weights)
        log(f"    {name}: {_said(found[name])}")
    theirs = tensors["curve"].numpy()
    off = np.abs(theirs - ours.curve.values)
    found["curve"] = _versus(told["measured"]["curve"], ours, "curve") | {
        "max_abs_diff": float(off.max()),
        "gap": float((ours.curve.full - ours.curve.empty).mean()),
    }
    log(
        f"    {len(theirs)} circuits one at a time: {found['curve']['seconds']:.1f} s, "
        f"{found['curve']['ratio']:.1f} times ours; values differ by {off.max():.1g} at most, "
        f"of a gap of {found['curve']['gap']:.3g}"
    )
    return found


def _transformer_lens(ours: Ours, folder: Path, log: Log) -> dict[str, Any]:
    tensors, told = _run(Path(sys.executable), "transformer-lens", folder)
    mine = "EAP, denoise"
    found = {"versions": told["versions"], **_versus(told["measured"]["EAP"], ours, mine)}
    found |= compare(tensors["EAP"].numpy(), ours.scores[mine], np.ones(ours.curve.n))
    log(f"    one pair at a time: {_said(found)}")
    return found


def compare(theirs: np.ndarray, ours: EdgeScores, weights: np.ndarray) -> dict[str, Any]:
    """Compare a peer's scores with ours, as they are and in the peer's convention.

    Args:
        theirs: (writers, readers) in units of the metric.
        ours: our scores, with the scores of each prompt.
        weights: (n,) the peer's convention: the factor of each prompt's effect, which is 1 for us.
    """
    from scipy.stats import spearmanr

    allowed = ours.graph.allowed
    assert ours.per_prompt is not None
    effects = ours.per_prompt.astype(np.float64)[:, allowed]
    mine, expected, found = effects.mean(0), weights @ effects / len(effects), theirs[allowed]
    largest = np.abs(expected).max()
    return {
        "spearman": float(np.asarray(spearmanr(found, mine))[0]),
        "max_abs_diff": float(np.abs(found - mine).max()),
        "largest": float(np.abs(mine).max()),
        "expected": {
            "weights": sorted({round(float(weight), 6) for weight in weights}),
            "spearman": float(np.asarray(spearmanr(found, expected))[0]),
            "max_rel_diff": float(np.abs(found - expected).max() / largest),
        },
        "outside_graph": float(np.abs(theirs[~allowed]).max()),
    }


def verdicts(ours: dict[str, Any], found: dict[str, Any]) -> dict[str, str]:
    """The result for each aim, in words."""
    rows = _rows(found, "EAP")
    said = {}
    if rows:
        fastest, leanest = (min(rows, key=lambda r: r[1][k]) for k in ("seconds", "peak_mb"))
        memory = {
            which: f"{row['peak_mb'] / max(ours['EAP']['peak_mb'], 1e-9):.1f} times our memory"
            for which, row in (("its", fastest[1]), ("that of the leanest", leanest[1]))
        }
        said["EAP"] = (
            f"EAP: the fastest peer ({fastest[0]}) takes {fastest[1]['ratio']:.2f} times our time "
            f"(aim 1) and {memory['its']} (aim {MEMORY_AIM}); the leanest ({leanest[0]}) "
            f"{memory['that of the leanest']} and {leanest[1]['ratio']:.2f} times our time"
        )
    curve = found.get("EAP-IG", {}).get("curve")
    if curve is not None:
        said["curve"] = f"curve: {curve['ratio']:.2f} times faster (aim {CURVE_AIM})"
    return said


def _rows(found: dict[str, Any], method: str) -> list[tuple[str, dict[str, Any]]]:
    rows = [
        (f"EAP-IG, {name}", row)
        for name, row in found.get("EAP-IG", {}).items()
        if name.split(",")[0] == method
    ]
    other = found.get("TransformerLens")
    return rows if other is None else [*rows, ("TransformerLens", other)]


def _versus(theirs: dict[str, Any], ours: Ours, mine: str) -> dict[str, Any]:
    measured = ours.measured[mine]
    return theirs | {
        "ours": mine,
        "ratio": theirs["seconds"] / measured["seconds"],
        "memory_ratio": theirs["peak_mb"] / max(measured["peak_mb"], 1e-9),
        "cold_memory_ratio": theirs["cold_mb"] / max(measured["cold_mb"], 1e-9),
    }


def _said(row: dict[str, Any]) -> str:
    expected = row["expected"]
    return (
        f"{row['seconds']:.2f} s, {row['ratio']:.2f} times ours; {row['peak_mb']:.0f} MB "
        f"({row['cold_mb']:.0f} at first), {row['memory_ratio']:.1f} "
        f"({row['cold_memory_ratio']:.1f}) times ours; rank correlation "
        f"{row['spearman']:+.6f}, largest difference {row['max_abs_diff']:.2g} of "
        f"{row['largest']:.2g}; with its sign and weights {expected['weights']}: "
        f"{expected['spearman']:+.6f}, {expected['max_rel_diff']:.1g} of the largest"
    )


def _run(
    python: Path, peer: str, folder: Path, *paths: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Run a peer; return its tensors and facts.

    Raises:
        InterpError: the process failed.
    """
    run_process(python, "benchmarks.peer_process", peer, folder, *paths)
    told = json.loads((folder / f"{peer}.json").read_text(encoding="utf-8"))
    return load_file(folder / f"{peer}.safetensors"), told


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
