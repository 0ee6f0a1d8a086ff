"""A tiny random model that reads words, and a task for it."""

import torch
import transformers as t
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.probing.lens_maps import LensMaps
from interp.tasks.word_pairs import WordTask

WORDS = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(5) for j in range(8)]
"""40 words."""

TASK = WordTask(
    name="tiny", instruction="waa wab wac.", pairs=tuple(zip(WORDS[:12], WORDS[12:24], strict=True))
)
OTHER = WordTask(
    name="other", instruction="wae wab.", pairs=tuple(zip(WORDS[:12], WORDS[24:36], strict=True))
)


def word_tokenizer():
    """Words with the space before them, and signs, as tokens."""
    tokens = ["<unk>", "<eos>", "\n", " ", ":", ".", "Q", "A", *WORDS]
    vocabulary = {token: i for i, token in enumerate([*tokens, *(f" {word}" for word in WORDS)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\n|[:.]| "), "isolated")
    made.decoder = decoders.Fuse()
    return t.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")


def word_model(heads=None, *, seed=0):
    """A random Llama of 3 layers and 4 heads in float64; with `heads`, all others write nothing."""
    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    config = t.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=128,
        initializer_range=0.3, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    made = t.LlamaForCausalLM(config).double().eval()
    if heads is not None:
        for layer, block in enumerate(made.model.layers):
            for head in range(4):
                if (layer, head) not in heads:
                    block.self_attn.o_proj.weight.data[:, 8 * head : 8 * head + 8] = 0
    return wrap(made, tokenizer, name=f"words-{seed}-{heads}")


def jacobian_lens(model: LanguageModel, halves: torch.Tensor, texts: int = 3) -> LensMaps:
    """A lens of layers 0 and 1 with given maps (half, layer, d, d), of `texts` texts each."""
    return LensMaps(
        kind="jacobian",
        model=model.name,
        model_hash=model.hash,
        layers=(0, 1),
        matrices=halves.mean(0),
        halves=halves,
        n=(texts, texts),
    )
