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
    from interp.capture import Activations, run_with_cache, text_losses
    from interp.cases import read_cases, taboo_cases
    from interp.chat import chat_prompts
    from interp.circuits.acdc import acdc
    from interp.circuits.circuit import Circuit
    from interp.circuits.comparing import compare as compare_circuits
    from interp.circuits.evaluation import evaluate as evaluate_circuit
    from interp.circuits.finding import find_circuit
    from interp.circuits.masks import learn_mask
    from interp.circuits.narrowing import evaluate_positioned
    from interp.circuits.narrowing import narrow as narrow_circuit
    from interp.circuits.places import edge_places
    from interp.circuits.positioned import PositionedCircuit
    from interp.circuits.recovery import recover
    from interp.circuits.redundancy import redundancy
    from interp.circuits.scoring import score_edges
    from interp.circuits.search import greedy, top_n
    from interp.communication import head_glu_scores
    from interp.communication import weights_of as head_weights
    from interp.comparison import blend_weights, compare_activations, compare_weights
    from interp.components import SITES, Component
    from interp.constellations import make_bank
    from interp.cumulative import AblatedSets, ablation_curve, greedy_order, smallest_sets
    from interp.directions import Direction, difference_in_means
    from interp.directions import orthogonalise as orthogonalise_direction
    from interp.errors import InterpError
    from interp.generation import generate
    from interp.geometry import compare as compare_directions
    from interp.geometry import representational_independence
    from interp.glu import antipodes, glu_activations, glu_vectors, rank_glu
    from interp.graph import Graph, graph_of
    from interp.head_roles import direction_projection, head_dla, knockout_cascade
    from interp.head_scan import head_flips, sahara, scan_heads
    from interp.interchange import group_interchange, head_interchange
    from interp.interventions import Intervention, intervene
    from interp.joint import joint_patching
    from interp.judging import flip_rate, judge_replies
    from interp.lens import logit_lens, search_neurons, unembed
    from interp.loading import known_models, load_model, model_hash
    from interp.metrics import METRICS, Metric
    from interp.models.language_model import LanguageModel
    from interp.over_refusal import dose_response, eval_over_refusal
    from interp.patching import activation_patching
    from interp.paths import path_patching
    from interp.patterns import find_positions
    from interp.probes import probe_geometry
    from interp.probing import probe_model, train_probes
    from interp.prompts import PromptPair, Task
    from interp.refusal_score import score_refusals, suggest_refusal_tokens
    from interp.scores import Scores
    from interp.selection import select_cosmic, select_direction, select_from_table
    from interp.silencing import activation_delta
    from interp.steered import generate_steered, run_steered, steer
    from interp.steering import (
        ablate_direction,
        add_direction,
        affine_edit,
        null_space_direction,
        patch_direction,
    )
    from interp.steering import conditional as conditional_steering
    from interp.studies.verification.outcomes import classify_outcome
    from interp.switching import switch_off
    from interp.task_steering import calibrate_gate, steer_task
    from interp.tasks import TASKS, load_task
    from interp.tasks.arithmetic import score_answer
    from interp.tasks.countdown import make_countdown
    from interp.toys.compiled import compiled_programs, load_compiled
    from interp.trajectories import read_trajectories
    from interp.transfer import embedding_map, transfer_probes
    from interp.triggered import steer_at_trigger, vector_steering
    from interp.weight_edits import orthogonalise_weights
    from interp.words import paired_word_probs

_HOMES = {
    "Activations": "capture",
    "run_with_cache": "capture",
    "text_losses": "capture",
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
    "blend_weights": "comparison",
    "compare_activations": "comparison",
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
    "transfer_probes": "transfer",
    "paired_word_probs": "words",
    "atp_star": "attribution",
    "attribution_patching": "attribution",
    "Graph": "graph",
    "graph_of": "graph",
    "Circuit": "circuits.circuit",
    "acdc": "circuits.acdc",
    "compare_circuits": "circuits.comparing:compare",
    "compiled_programs": "toys.compiled",
    "edge_places": "circuits.places",
    "evaluate_circuit": "circuits.evaluation:evaluate",
    "PositionedCircuit": "circuits.positioned",
    "evaluate_positioned": "circuits.narrowing",
    "narrow_circuit": "circuits.narrowing:narrow",
    "find_circuit": "circuits.finding",
    "learn_mask": "circuits.masks",
    "load_compiled": "toys.compiled",
    "recover": "circuits.recovery",
    "redundancy": "circuits.redundancy",
    "score_edges": "circuits.scoring",
    "greedy": "circuits.search",
    "top_n": "circuits.search",
    "chat_prompts": "chat",
    "make_bank": "constellations",
    "Direction": "directions",
    "difference_in_means": "directions",
    "orthogonalise_direction": "directions:orthogonalise",
    "compare_directions": "geometry:compare",
    "representational_independence": "geometry",
    "direction_projection": "head_roles",
    "head_dla": "head_roles",
    "knockout_cascade": "head_roles",
    "head_flips": "head_scan",
    "sahara": "head_scan",
    "scan_heads": "head_scan",
    "group_interchange": "interchange",
    "head_interchange": "interchange",
    "flip_rate": "judging",
    "judge_replies": "judging",
    "read_cases": "cases",
    "taboo_cases": "cases",
    "dose_response": "over_refusal",
    "eval_over_refusal": "over_refusal",
    "score_refusals": "refusal_score",
    "suggest_refusal_tokens": "refusal_score",
    "select_cosmic": "selection",
    "select_direction": "selection",
    "select_from_table": "selection",
    "generate_steered": "steered",
    "run_steered": "steered",
    "steer": "steered",
    "ablate_direction": "steering",
    "add_direction": "steering",
    "affine_edit": "steering",
    "conditional_steering": "steering:conditional",
    "null_space_direction": "steering",
    "patch_direction": "steering",
    "switch_off": "switching",
    "calibrate_gate": "task_steering",
    "steer_task": "task_steering",
    "read_trajectories": "trajectories",
    "orthogonalise_weights": "weight_edits",
    "probe_geometry": "probes",
    "classify_outcome": "studies.verification.outcomes",
    "head_weights": "communication:weights_of",
    "glu_vectors": "glu",
    "find_positions": "patterns",
    "score_answer": "tasks.arithmetic",
    "make_countdown": "tasks.countdown",
    "smallest_sets": "cumulative",
    "greedy_order": "cumulative",
    "ablation_curve": "cumulative",
    "AblatedSets": "cumulative",
    "steer_at_trigger": "triggered",
    "vector_steering": "triggered",
}
"""Public name -> module below interp, with what it is called there where that differs."""

__version__ = "0.1.0"
__all__ = [
    "METRICS",
    "SITES",
    "TASKS",
    "AblatedSets",
    "Activations",
    "Circuit",
    "Component",
    "Direction",
    "Graph",
    "InterpError",
    "Intervention",
    "LanguageModel",
    "Metric",
    "PositionedCircuit",
    "PromptPair",
    "Scores",
    "Task",
    "ablate",
    "ablate_direction",
    "ablation_curve",
    "acdc",
    "activation_delta",
    "activation_patching",
    "add_direction",
    "affine_edit",
    "antipodes",
    "atp_star",
    "attention_to",
    "attribution_patching",
    "calibrate_gate",
    "chat_prompts",
    "classify_outcome",
    "compare_circuits",
    "blend_weights",
    "compare_activations",
    "compare_directions",
    "compare_weights",
    "compiled_programs",
    "conditional_steering",
    "difference_in_means",
    "direction_projection",
    "dose_response",
    "edge_places",
    "embedding_map",
    "transfer_probes",
    "eval_over_refusal",
    "evaluate_circuit",
    "evaluate_positioned",
    "find_circuit",
    "find_positions",
    "flip_rate",
    "generate",
    "generate_steered",
    "glu_activations",
    "glu_vectors",
    "graph_of",
    "greedy",
    "greedy_order",
    "group_interchange",
    "head_dla",
    "head_flips",
    "head_glu_scores",
    "head_interchange",
    "head_weights",
    "intervene",
    "joint_patching",
    "judge_replies",
    "knockout_cascade",
    "known_models",
    "learn_mask",
    "load_compiled",
    "load_model",
    "load_task",
    "logit_lens",
    "make_ablation",
    "make_bank",
    "make_countdown",
    "narrow_circuit",
    "model_hash",
    "null_space_direction",
    "orthogonalise_direction",
    "orthogonalise_weights",
    "paired_word_probs",
    "patch_direction",
    "path_patching",
    "probe_geometry",
    "probe_model",
    "rank_glu",
    "read_cases",
    "read_trajectories",
    "recover",
    "redundancy",
    "representational_independence",
    "run_steered",
    "run_with_cache",
    "sahara",
    "scan_heads",
    "score_answer",
    "score_edges",
    "score_refusals",
    "search_neurons",
    "select_cosmic",
    "select_direction",
    "select_from_table",
    "select_heads",
    "smallest_sets",
    "steer",
    "steer_at_trigger",
    "taboo_cases",
    "steer_task",
    "suggest_refusal_tokens",
    "switch_off",
    "text_losses",
    "top_n",
    "train_probes",
    "unembed",
    "vector_steering",
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
