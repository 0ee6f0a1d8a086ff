"""Time and memory of edge scores, faithfulness curves and ACDC, compared with other packages."""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.memory import measure
from benchmarks.peers import Ours, Peers, compare_peers
from interp.circuits.discovery.acdc import acdc, visits
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.files import versions
from interp.core.prompts import PromptPair, Task
from interp.engine.memory import budget_bytes
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap

Log = Callable[[str], None]
STEPS = 5
AIMS = {
    "EAP": "at least as fast as the fastest peer, in a tenth of its memory",
    "curve": "5 times faster than one circuit at a time",
    "ACDC": "10 times fewer forward passes than one edge at a time",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a GPT-2 with random weights."""

    layers: int
    heads: int
    width: int
    vocabulary: int = 1000


SMALL = Shape(layers=12, heads=12, width=768, vocabulary=50257)
"""GPT-2 small: 32,491 edges."""

SEARCHED = Shape(layers=12, heads=4, width=64)
"""The model on which ACDC also runs edge by edge: 4,555 edges."""


def bench_circuits(
    shape: Shape = SMALL,
    searched: Shape = SEARCHED,
    *,
    n: int = 16,
    length: int = 15,
    threshold: float = 0.01,
    budget_gb: float = 0.05,
    peers: Peers | None = None,
    log: Log = lambda text: None,
) -> dict[str, Any]:
    """Score edges, compute a faithfulness curve and run ACDC, and compare with other packages.

    Everything runs on one thread. Model and prompts are random. The metric is the logit difference
    of the two tokens whose logits differ most between a pair's clean and corrupted run. Results are
    compared as well as times, see `compare_peers`. Ratios are theirs over ours: above 1 means that
    this package is better.

    Times are seconds of computing by one thread, which other processes hardly affect. Memory is the
    largest growth of the resident set beyond the model: `cold_mb` in a first call (including
    gradients of weights, if a peer computes and keeps them) and `peak_mb` in a later one.

    Args:
        shape: the model for scores and curves.
        searched: the model for ACDC.
        n: number of prompt pairs.
        length: tokens of each prompt.
        threshold: threshold of ACDC, as a share of the gap.
        budget_gb: memory for our running variants, in GB.
        peers: the packages to compare with; None for none.
        log: receives a line per step.

    Raises:
        InterpError: the process of a peer failed; the message gives its last output.
    """
    budget_bytes(budget_gb)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        hf_model = random_gpt2(shape)
        with tempfile.TemporaryDirectory() as folder:
            hf_model.save_pretrained(Path(folder) / "model")
            model = wrap(hf_model, name="random-gpt2", check=False)
            task = random_pairs(model, n, length)
            ours = _ours(model, task, budget_gb, log)
            found = {"shape": asdict(shape), "edges": ours.graph.n_edges, "ours": ours.measured}
            if peers is not None:
                found["beside"] = compare_peers(ours, model, task, Path(folder), peers, log)
        found["ACDC"] = bench_acdc(searched, threshold=threshold, n=n, length=length, log=log)
    finally:
        torch.set_num_threads(threads)
    machine = {"python": sys.version.split()[0], "machine": platform.machine(), "threads": 1}
    settings = {"n": n, "length": length, "budget_gb": budget_gb, "steps": STEPS}
    return {"aims": AIMS, **settings, **found, "versions": versions(), **machine}


def _ours(model: LanguageModel, task: Task, budget_gb: float, log: Log) -> Ours:
    """Our scores by every method and rule, our curve, and the time and memory of each."""
    scores, measured = {}, {}
    jobs: dict[str, dict[str, Any]] = {
        "EAP": {"method": "EAP"},
        "EAP, denoise": {"method": "EAP", "direction": "denoise"},
        "EAP-IG-inputs": {"method": "EAP-IG-inputs", "steps": STEPS},
        # The points of hannamw/EAP-IG: the corrupted end, not the clean one.
        "EAP-IG-inputs, right rule": {"method": "EAP-IG-inputs", "steps": STEPS, "rule": "right"},
    }
    score_edges(model, task.first(1), budget_gb=budget_gb)  # warm up
    for name, job in jobs.items():
        found, facts = measure(
            lambda job=job: score_edges(model, task, budget_gb=budget_gb, per_prompt=True, **job)
        )
        scores[name], measured[name] = (
            found,
            facts
            | {
                "completeness_gap": found.completeness_gap,
                "passes": asdict(found.passes),
            },
        )
        log(f"ours, {name}: {_said(facts)}")
    curve, facts = measure(
        lambda: faithfulness_curve(model, task, scores["EAP"], random=0, budget_gb=budget_gb)
    )
    measured["curve"] = facts | {"sizes": curve.sizes.tolist()}
    measured["curve"]["faithfulness"] = curve.faithfulness.tolist()
    log(f"ours, curve of {len(curve.circuits)} circuits: {_said(facts)}")
    return Ours(graph=scores["EAP"].graph, scores=scores, curve=curve, measured=measured)


def _said(facts: dict[str, Any]) -> str:
    return f"{facts['seconds']:.2f} s, {facts['peak_mb']:.0f} MB"


def bench_acdc(
    shape: Shape = SEARCHED,
    *,
    threshold: float = 0.01,
    n: int = 16,
    length: int = 15,
    log: Log = lambda text: None,
) -> dict[str, Any]:
    """ACDC in batches of guesses, unguided and guided by EAP, compared with the plain loop.

    `forwards` counts forward passes over all prompts, for ACDC in equivalents (see `Trials`).
    `equal` says whether the circuits have exactly the same edges.
    """
    model = wrap(random_gpt2(shape), name="random-searched", check=False)
    task = random_pairs(model, n, length)
    begun = time.thread_time()
    mask, loops = _edge_by_edge(model, task, threshold)
    seconds, guide = time.thread_time() - begun, score_edges(model, task)
    facts: dict[str, Any] = {
        "shape": asdict(shape),
        "edges": guide.graph.n_edges,
        "kept": int(mask.sum()),
        "threshold": threshold,
        "loop": {"forwards": loops, "seconds": seconds},
    }
    log(f"ACDC keeps {facts['kept']} of {facts['edges']} edges")
    log(f"    edge by edge: {loops} forward passes, {seconds:.1f} s")
    for name, hint in (("blind", None), ("guided by EAP", guide)):
        begun = time.thread_time()
        found = acdc(model, task, threshold=threshold, guide=hint, resume=False)
        took = time.thread_time() - begun
        differ = int((found.mask != mask).sum())
        facts[name] = {
            "forwards": found.forwards,
            "calls": found.calls,
            "tests": found.tests,
            "skipped": found.skipped,
            "seconds": took,
            "ratio": loops / found.forwards,
            "seconds_ratio": seconds / took,
            "differ": differ,
            "equal": differ == 0,
        }
        log(
            f"    {name}: {found.forwards:.0f} forward-equivalents, {loops / found.forwards:.1f} "
            f"times fewer (aim 10); {took:.1f} s, {seconds / took:.1f} times faster; decisions "
            + ("equal" if not differ else f"differ on {differ} edges")
        )
    return facts


def _edge_by_edge(model: LanguageModel, task: Task, threshold: float) -> tuple[np.ndarray, int]:
    """The plain loop of ACDC, with one run for every edge; and the number of runs."""
    trials = Trials(model, task)
    mask, gap = trials.graph.mask(), mean_gap(trials.ends())
    current = float(trials.values(mask[None]).mean())
    for edge in visits(trials.graph, "reverse"):
        mask[edge] = False
        after = float(trials.values(mask[None]).mean())
        if (current - after) / gap >= threshold:
            mask[edge] = True
        else:
            current = after
    return mask, trials.tests


def random_gpt2(shape: Shape) -> Any:
    """A random GPT-2 with weights twice as large as usual, so that attention is not uniform."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        vocab_size=shape.vocabulary,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config).eval()


def random_pairs(model: LanguageModel, n: int, length: int) -> Task:
    """Pairs of random prompts that differ in their second halves, and the tokens that tell them."""
    rng, same = np.random.default_rng(0), length // 2
    clean = rng.integers(model.d_vocab, size=(n, length))
    corrupted = clean.copy()
    corrupted[:, same:] = (clean[:, same:] + 1 + model.d_vocab // 3) % model.d_vocab
    change = model.last_logits(clean.tolist()) - model.last_logits(corrupted.tolist())
    pairs = tuple(
        PromptPair(
            clean=tuple(one.tolist()),
            corrupted=tuple(other.tolist()),
            answers=(int(row.argmax()),),
            wrong=(int(row.argmin()),),
        )
        for one, other, row in zip(clean, corrupted, change, strict=True)
    )
    return Task(name="random pairs", pairs=pairs)
