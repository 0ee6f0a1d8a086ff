"""Tiny random models of every supported family, and random tasks for them.

`python -m tests.families` writes the table of families that `interp models` prints.
"""

import json
import random
import re
from contextlib import contextmanager
from typing import Any

import torch
import transformers as t
from torch.nn import functional as F

from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.models.language_model import LanguageModel
from interp.models.loading import FAMILY_TABLE, wrap
from interp.tasks.taboo import PROVENANCE

VOCABULARY = 97
_SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
FAMILIES = {
    "gpt2": lambda: t.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2,
    ),
    "neox": lambda: t.GPTNeoXConfig(**_SIZE),
    "llama": lambda: t.LlamaConfig(**_GROUPED),
    "mistral": lambda: t.MistralConfig(**_GROUPED, sliding_window=4),
    "qwen2": lambda: t.Qwen2Config(**_GROUPED),
    "qwen3": lambda: t.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": lambda: t.Gemma2Config(**_GEMMA),
    "gemma3": lambda: t.Gemma3TextConfig(
        **_GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "olmo2": lambda: t.Olmo2Config(**_GROUPED),
}  # fmt: skip


CORE = list(FAMILIES)
"""Families of each kind of layout: in parallel, grouped, windows, post-norms, q/k norms."""

LAYOUTS = ["gpt2", "neox", "llama", "gemma2", "olmo2", "mixtral"]
"""The families of `make test`: learnt positions; in parallel; grouped and rotary; windows, caps and
norms on both sides; norms behind the parts and of q and k; experts."""

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_TWO = {**_SIZE, "num_hidden_layers": 2}
_PAIRS = {**_TWO, "num_key_value_heads": 2}
_GPT = {**_IDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_OPT = {
    **_IDS, "num_hidden_layers": 3, "ffn_dim": 48, "num_attention_heads": 4, "pad_token_id": 0,
    "max_position_embeddings": 64, "hidden_size": 32,
}  # fmt: skip
_FALCON = {**_IDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_EXPERTS = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
FAMILIES |= {
    "phi": lambda: t.PhiConfig(**_SIZE),
    "phi3": lambda: t.Phi3Config(**_GROUPED),
    "opt": lambda: t.OPTConfig(**_OPT, word_embed_proj_dim=32),
    "gpt-neo": lambda: t.GPTNeoConfig(
        **_IDS, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, window_size=8,
        attention_types=[[["global", "local", "global"], 1]], max_position_embeddings=64,
    ),
    "gptj": lambda: t.GPTJConfig(**_GPT, rotary_dim=4),
    "neox-serial": lambda: t.GPTNeoXConfig(**_SIZE, use_parallel_residual=False),
    "neox-no-bias": lambda: t.GPTNeoXConfig(**_SIZE, attention_bias=False),
    "bigcode": lambda: t.GPTBigCodeConfig(**_GPT, n_inner=48),
    "bloom": lambda: t.BloomConfig(**_IDS, hidden_size=32, n_layer=3, n_head=4),
    "falcon-7b": lambda: t.FalconConfig(**_FALCON, multi_query=True, bias=False),
    "mpt": lambda: t.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=3, max_seq_len=64
    ),
    "starcoder2": lambda: t.Starcoder2Config(**_GROUPED, sliding_window=8),
    "stablelm": lambda: t.StableLmConfig(**_GROUPED),
    "olmo": lambda: t.OlmoConfig(**_GROUPED),
    "gemma": lambda: t.GemmaConfig(**_GROUPED, head_dim=8),
    "cohere": lambda: t.CohereConfig(**_GROUPED, use_qk_norm=True),
    "cohere2": lambda: t.Cohere2Config(**_GROUPED, sliding_window=8),
    "granite": lambda: t.GraniteConfig(
        **_GROUPED, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2,
        logits_scaling=3.0,
    ),
    "smollm3": lambda: t.SmolLM3Config(**_GROUPED),
    "gpt-oss": lambda: t.GptOssConfig(
        **_GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "mixtral": lambda: t.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": lambda: t.Qwen2MoeConfig(**_EXPERTS, shared_expert_intermediate_size=48),
    "qwen3-moe": lambda: t.Qwen3MoeConfig(**_EXPERTS, head_dim=8),
    "olmoe": lambda: t.OlmoeConfig(**_GROUPED, num_experts=4, num_experts_per_tok=2),
    "stablelm-parallel": lambda: t.StableLmConfig(
        **_GROUPED, use_parallel_residual=True, qk_layernorm=True
    ),
    "olmo3": lambda: t.Olmo3Config(
        **_GROUPED, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "glm4": lambda: t.Glm4Config(**_GROUPED, head_dim=8),
    "ministral": lambda: t.MinistralConfig(
        **_GROUPED, head_dim=8, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "falcon-40b": lambda: t.FalconConfig(
        **_FALCON, num_kv_heads=2, new_decoder_architecture=True, bias=False
    ),
    "falcon-11b": lambda: t.FalconConfig(
        **_FALCON, num_kv_heads=2, new_decoder_architecture=True, bias=False,
        num_ln_in_parallel_attn=1,
    ),
}  # fmt: skip
OTHERS = {
    "phi3-longrope": lambda: t.Phi3Config(
        **_PAIRS, original_max_position_embeddings=16, rope_parameters=LONGROPE
    ),
    "opt-350m": lambda: t.OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "olmo-clipped": lambda: t.OlmoConfig(**_PAIRS, clip_qkv=0.5),
    "falcon-rw": lambda: t.FalconConfig(
        **_FALCON, multi_query=False, parallel_attn=False, bias=True, alibi=True
    ),
    "llama-longrope": lambda: t.LlamaConfig(**_PAIRS, rope_parameters=LONGROPE),
    "qwen3-next": lambda: t.Qwen3NextConfig(
        **{**_EXPERTS, "num_hidden_layers": 2}, head_dim=8, shared_expert_intermediate_size=24,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "deepseek-v3": lambda: t.DeepseekV3Config(
        **_TWO, num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "deepseek-v2": lambda: t.DeepseekV2Config(
        **_TWO, num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, n_shared_experts=1,
    ),
    "llama4": lambda: t.Llama4TextConfig(
        **{**_PAIRS, "intermediate_size": 24}, head_dim=8, intermediate_size_mlp=48,
        num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1, floor_scale=4,
        attention_chunk_size=4, no_rope_layers=[1, 0], attn_temperature_tuning=True,
    ),
    "recurrent-gemma": lambda: t.RecurrentGemmaConfig(
        **{**_PAIRS, "num_hidden_layers": 3}, lru_width=32, attention_window_size=8, head_dim=8
    ),
    "mamba": lambda: t.MambaConfig(**_IDS, hidden_size=32, num_hidden_layers=2, state_size=4),
}  # fmt: skip
"""Families without a fast engine, and what is refused."""


UNBRIDGED = ("ministral", "falcon-40b", "falcon-11b")
"""Families that TransformerLens cannot run: their hooks run in the fast engine."""

EXPERTS = ("gpt-oss", "mixtral", "olmoe", "qwen2-moe", "qwen3-moe")
DENSE = [name for name in FAMILIES if name not in EXPERTS]
"""Families whose MLPs have neurons."""


def tiny(
    name: str, dtype: torch.dtype = torch.float32, *, config: Any = None, seed: int = 0
) -> t.PreTrainedModel:
    """A random model; weights and biases are far from their initial zeros and ones."""
    torch.manual_seed(seed)
    config = config or {**FAMILIES, **OTHERS}[name]()
    model = t.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval().to(dtype)


def record(name: str, model: LanguageModel | InterpError) -> dict[str, Any]:
    """A family's line of the table that `interp models` prints."""
    architecture = type(tiny(name)).__name__
    if isinstance(model, InterpError):
        why = str(model.found).partition(" expects ")[0]
        return {"name": name, "architecture": architecture, "runs": "refused", "missing": {"": why}}
    missing = {
        site: re.sub(r", off by [^)]*", "", re.sub(r"[(][0-9.e+-]+[)]", "", why)).strip()
        for site, why in model.sites.items()
        if why is not None
    }
    notes = [] if model.engine_reason is None else [model.engine_reason]
    if model.unbridged is not None:
        notes.append("TransformerLens cannot run it: runs with hooks take the fast engine")
    if not model.ragged:
        notes.append("padding changes it: prompts of different lengths run apart")
    missing |= {"": "; ".join(notes)} if notes else {}
    runs = "hooks" if model.decoder is None else "engine"
    return {"name": name, "architecture": architecture, "runs": runs, "missing": missing}


def wrapped(name: str) -> LanguageModel | InterpError:
    """A tiny model, checked, or why it is refused."""
    try:
        return wrap(tiny(name), name=f"tiny-{name}")
    except InterpError as error:
        return error


def random_task(lengths: tuple[int, ...] = (9, 9, 7, 9), seed: int = 0, n_named: int = 2) -> Task:
    """Random token prompts that differ at positions 2 and 4."""
    rng = random.Random(seed)
    pairs = []
    for length in lengths:
        clean = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        corrupted = list(clean)
        for place in (2, 4):
            corrupted[place] = (corrupted[place] + 7 + place) % VOCABULARY
        pairs.append(
            PromptPair(
                clean=tuple(clean),
                corrupted=tuple(corrupted),
                answers=(rng.randrange(3, 50),),
                wrong=(rng.randrange(50, VOCABULARY),),
                positions={"changed": 2, "near_end": -n_named},
            )
        )
    return Task(name="random", pairs=tuple(pairs))


@contextmanager
def true_double():
    """Inside, nothing in float64 is rounded to float32.

    Hugging Face's norms and softmaxes compute in float32 whatever the weights' type; for a
    comparison at 1e-9 their `.to(float32)`, `.float()` and `dtype=float32` must not round.
    """
    to, narrow, softmax = torch.Tensor.to, torch.Tensor.float, F.softmax

    def wide_to(self, *args, **options):
        wanted = options.get("dtype", args[0] if args else None)
        if wanted is torch.float32 and self.dtype == torch.float64:
            return self
        return to(self, *args, **options)

    def wide_softmax(x, dim=None, _stacklevel=3, dtype=None):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    torch.Tensor.to = wide_to
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else narrow(self)
    F.softmax = torch.nn.functional.softmax = wide_softmax
    try:
        yield
    finally:
        torch.Tensor.to, torch.Tensor.float = to, narrow
        F.softmax = torch.nn.functional.softmax = softmax


if __name__ == "__main__":
    rows = [record(name, wrapped(name)) for name in (*FAMILIES, *OTHERS)]
    table = {"provenance": PROVENANCE, "families": rows}
    FAMILY_TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
