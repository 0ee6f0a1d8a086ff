"""Tiny random models of every supported family, and random tasks for them."""

import random
from contextlib import contextmanager

import torch
import transformers as t
from torch.nn import functional as F

from interp.prompts import PromptPair, Task

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


def tiny(name: str, dtype: torch.dtype = torch.float32) -> t.PreTrainedModel:
    """A random model; weights and biases are far from their initial zeros and ones."""
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval().to(dtype)


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
