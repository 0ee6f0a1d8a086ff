"""Which heads and neurons carry a behaviour of a language model: exact, fast, controlled.

The public names and the modules (`interp.heads`, `interp.interventions`) are loaded when they are
first used, so that `import interp` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.ablation import ablate, make_ablation
    from interp.attention import attention_to, select_heads
    from interp.attribution import atp_star, attribution_patching
    from interp.capture import Activations, run_with_cache
    from interp.circuits.acdc import acdc
    from interp.circuits.circuit import Circuit
    from interp.circuits.comparing import compare as compare_circuits
    from interp.circuits.evaluation import evaluate as evaluate_circuit
    from interp.circuits.finding import find_circuit
    from interp.circuits.masks import learn_mask
    from interp.circuits.recovery import recover
    from interp.circuits.redundancy import redundancy
    from interp.circuits.scoring import score_edges
    from interp.circuits.search import top_n
    from interp.communication import head_glu_scores
    from interp.comparison import compare_weights
    from interp.components import SITES, Component
    from interp.errors import InterpError
    from interp.generation import generate
    from interp.glu import antipodes, glu_activations, rank_glu
    from interp.graph import Graph, graph_of
    from interp.interventions import Intervention, intervene
    from interp.joint import joint_patching
    from interp.lens import logit_lens, search_neurons, unembed
    from interp.loading import known_models, load_model, model_hash
    from interp.metrics import METRICS, Metric
    from interp.models.language_model import LanguageModel
    from interp.patching import activation_patching
    from interp.paths import path_patching
    from interp.probing import probe_model, train_probes
    from interp.prompts import PromptPair, Task
    from interp.scores import Scores
    from interp.silencing import activation_delta
    from interp.tasks import TASKS, load_task
    from interp.toys.compiled import compiled_programs, load_compiled
    from interp.transfer import embedding_map
    from interp.words import paired_word_probs

_HOMES = {
    "Activations": "capture",
    "run_with_cache": "capture",
    "SITES": "components",
    "Component": "components",
    "InterpError": "errors",
    "Intervention": "interventions",
    "intervene": "interventions",
    "METRICS": "metrics",
    "Metric": "metrics",
    "LanguageModel": "models.language_model",
    "known_models": "loading",
    "load_model": "loading",
    "model_hash": "loading",
    "activation_patching": "patching",
    "joint_patching": "joint",
    "path_patching": "paths",
    "PromptPair": "prompts",
    "Task": "prompts",
    "Scores": "scores",
    "TASKS": "tasks",
    "load_task": "tasks",
    "ablate": "ablation",
    "make_ablation": "ablation",
    "attention_to": "attention",
    "select_heads": "attention",
    "head_glu_scores": "communication",
    "compare_weights": "comparison",
    "generate": "generation",
    "antipodes": "glu",
    "glu_activations": "glu",
    "rank_glu": "glu",
    "logit_lens": "lens",
    "search_neurons": "lens",
    "unembed": "lens",
    "probe_model": "probing",
    "train_probes": "probing",
    "activation_delta": "silencing",
    "embedding_map": "transfer",
    "paired_word_probs": "words",
    "atp_star": "attribution",
    "attribution_patching": "attribution",
    "Graph": "graph",
    "graph_of": "graph",
    "Circuit": "circuits.circuit",
    "acdc": "circuits.acdc",
    "compare_circuits": "circuits.comparing:compare",
    "compiled_programs": "toys.compiled",
    "evaluate_circuit": "circuits.evaluation:evaluate",
    "find_circuit": "circuits.finding",
    "learn_mask": "circuits.masks",
    "load_compiled": "toys.compiled",
    "recover": "circuits.recovery",
    "redundancy": "circuits.redundancy",
    "score_edges": "circuits.scoring",
    "top_n": "circuits.search",
}
"""Public name -> module below interp, with what it is called there where that differs."""

__version__ = "0.1.0"
__all__ = [
    "METRICS",
    "SITES",
    "TASKS",
    "Activations",
    "Circuit",
    "Component",
    "Graph",
    "InterpError",
    "Intervention",
    "LanguageModel",
    "Metric",
    "PromptPair",
    "Scores",
    "Task",
    "ablate",
    "acdc",
    "activation_delta",
    "activation_patching",
    "antipodes",
    "atp_star",
    "attention_to",
    "attribution_patching",
    "compare_circuits",
    "compare_weights",
    "compiled_programs",
    "embedding_map",
    "evaluate_circuit",
    "find_circuit",
    "generate",
    "glu_activations",
    "graph_of",
    "head_glu_scores",
    "intervene",
    "joint_patching",
    "known_models",
    "learn_mask",
    "load_compiled",
    "load_model",
    "load_task",
    "logit_lens",
    "make_ablation",
    "model_hash",
    "paired_word_probs",
    "path_patching",
    "probe_model",
    "rank_glu",
    "recover",
    "redundancy",
    "run_with_cache",
    "score_edges",
    "search_neurons",
    "select_heads",
    "top_n",
    "train_probes",
    "unembed",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home, _, inner = _HOMES[name].partition(":")
        return getattr(import_module(f"interp.{home}"), inner or name)
    if not name.startswith("_") and find_spec(f"interp.{name}") is not None:
        return import_module(f"interp.{name}")
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
