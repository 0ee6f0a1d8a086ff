"""Run a peer of `python -m benchmarks circuits` in a process with its own package versions.

`python -m benchmarks.peer_process eap-ig|transformer-lens FOLDER` reads the model, the prompts and
the request from the folder (see `benchmarks.peers`) and writes the peer's results to it.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.memory import measure


def eap_ig(folder: Path) -> None:
    """Edge attribution and evaluation, one circuit at a time, by hannamw/EAP-IG on the CPU.

    Its functions tokenise text and put scores on a GPU; both are replaced here.
    """
    request, data = _request(folder)
    attribution, evaluation = (
        importlib.import_module(f"eap.{n}") for n in ("attribute", "evaluate")
    )
    for module in (attribution, evaluation):
        vars(module)["tokenize_plus"] = _tokens
    vars(attribution)["torch"] = _OnCpu()
    model = _hooked_transformer(folder / "model")
    graph = importlib.import_module("eap.graph").Graph.from_model(model)
    found, tensors = {}, {}
    for name, job in request["attributions"].items():
        loader = _batches(data, job["batch"])
        for weight in model.parameters():
            weight.requires_grad_(not job["frozen"])
            weight.grad = None
        model.embed.W_E.requires_grad_()  # without it there would be no gradient

        def attribute(loader: Any = loader, job: dict[str, Any] = job) -> torch.Tensor:
            attribution.attribute(
                model,
                graph,
                loader,
                lambda *given: _logit_diff(*given).mean(),
                method=job["method"],
                ig_steps=job.get("steps"),
                quiet=True,
            )
            return graph.scores.clone()

        tensors[name], found[name] = measure(attribute)
    loader = _batches(data, request["batch"])

    def curve() -> torch.Tensor:
        values = []
        for mask in data["masks"].bool():
            graph.in_graph[:] = mask
            values.append(evaluation.evaluate_graph(model, graph, loader, _logit_diff, quiet=True))
        return torch.stack(values)

    model.requires_grad_(False)
    tensors["curve"], found["curve"] = measure(curve)
    _answer(folder, "eap-ig", tensors, found)


def transformer_lens(folder: Path) -> None:
    """Edge attribution by TransformerLens, which takes one pair and one position at a time."""
    from transformers import AutoModelForCausalLM

    from interp.models.bridge import build_bridge

    peer = importlib.import_module("transformer_lens.tools.analysis.attribution_patching")
    _, data = _request(folder)
    hf_model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    bridge = build_bridge(hf_model.eval())
    config = peer.EdgeAttributionConfig(granularity="edge")

    def attribute() -> list[dict[Any, float]]:
        found = []
        for clean, corrupted, pair in zip(
            data["clean"], data["corrupted"], data["targets"].tolist(), strict=True
        ):
            found.append(
                peer.attribution_patch(
                    bridge,
                    clean[None],
                    corrupted[None],
                    lambda logits, pair=pair: logits[0, -1, pair[0]] - logits[0, -1, pair[1]],
                    config,
                ).edge_scores
            )
        return found

    found, facts = measure(attribute, times=1)
    cfg = bridge.cfg
    scores = torch.zeros(*data["masks"].shape[1:], dtype=torch.float64)
    for one in found:
        for (writer, reader), value in one.items():
            scores[_place(writer, cfg.n_heads, 1), _place(reader, cfg.n_heads, 3)] += value
    _answer(folder, "transformer-lens", {"EAP": scores / len(found)}, {"EAP": facts})


def _place(node: Any, n_heads: int, reads: int) -> int:
    """The number of a node among the writers (reads=1) or readers (reads=3) of our graph."""
    first = (reads == 1) + (node.layer or 0) * (reads * n_heads + 1)
    match node.kind:
        case "embed":
            return 0
        case "attn_head_out" | "q_input":
            return first + node.head
        case "k_input":
            return first + n_heads + node.head
        case "v_input":
            return first + 2 * n_heads + node.head
        case "mlp_out" | "mlp_in":
            return first + reads * n_heads
        case _:
            return -1  # the logits


class _OnCpu:
    """The torch module, except that `zeros` ignores the device and uses the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *shape: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*shape, **options)


def _tokens(model: Any, inputs: torch.Tensor, max_length: int | None = None) -> tuple[Any, ...]:
    """The output of a tokeniser for prompts given as tokens of equal length."""
    n, length = inputs.shape
    return inputs, torch.ones_like(inputs), torch.full((n,), length), length


def _batches(data: dict[str, torch.Tensor], size: int) -> list[tuple[torch.Tensor, ...]]:
    names = ("clean", "corrupted", "targets")
    return list(zip(*(data[name].split(size) for name in names), strict=True))


def _logit_diff(
    logits: torch.Tensor, clean: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    last = logits[torch.arange(len(logits)), lengths - 1].gather(1, targets)
    return last[:, 0] - last[:, 1]


def _hooked_transformer(folder: Path) -> Any:
    """The model in TransformerLens 2 with unprocessed weights and the hooks that edges need."""
    from transformers import GPT2LMHeadModel

    peer = importlib.import_module("transformer_lens")
    weights = importlib.import_module("transformer_lens.pretrained.weight_conversions")
    hf_model = GPT2LMHeadModel.from_pretrained(folder)
    config = hf_model.config
    cfg = peer.HookedTransformerConfig(
        n_layers=config.n_layer,
        n_heads=config.n_head,
        d_model=config.n_embd,
        d_head=config.n_embd // config.n_head,
        d_mlp=4 * config.n_embd,
        d_vocab=config.vocab_size,
        n_ctx=config.n_positions,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=config.layer_norm_epsilon,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        device="cpu",
    )
    model = peer.HookedTransformer(cfg)
    model.load_state_dict(weights.convert_gpt2_weights(hf_model, cfg), strict=False)
    return model.eval()


def _request(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    return request, load_file(folder / "data.safetensors")


def _answer(
    folder: Path, name: str, tensors: dict[str, torch.Tensor], measured: dict[str, Any]
) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{name}.safetensors")
    names = ("torch", "transformer-lens", "transformers")
    content = {"measured": measured, "versions": {n: version(n) for n in names}}
    (folder / f"{name}.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    {"eap-ig": eap_ig, "transformer-lens": transformer_lens}[sys.argv[1]](Path(sys.argv[2]))
