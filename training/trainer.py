"""Functions of the training scripts: options, checkpoints, curves, small models, export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.trainer_utils import get_last_checkpoint

from interp.models import embedded
from interp.models.language_model import fingerprint


def options(seed: int, out: Path, *, kept: int | None = 2) -> dict[str, Any]:
    """The options of every trainer, which keeps the last few checkpoints, or with None all."""
    return {
        "output_dir": str(out),
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_total_limit": kept,
        "logging_steps": 5,
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
    }


def resume(trainer: Any, folder: Path) -> None:
    """Train, and resume from the last checkpoint if there is one."""
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)


def finish(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Save the weights, the tokeniser and the curve of a stage."""
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    (folder / "curve.json").write_text(json.dumps(trainer.state.log_history, indent=1))


def curve(path: Path) -> list[dict[str, float]]:
    """A training log, reduced to about 40 points of loss and reward (if there is one)."""
    rows = [row for row in json.loads(path.read_text()) if "loss" in row]
    kept = rows[:: max(1, len(rows) // 40)]
    names = ("step", "loss", "reward")
    return [{k: round(float(row[k]), 4) for k in names if k in row} for row in kept]


def word_tokenizer(
    texts: Iterable[str], pieces: str, *, special: Sequence[str] = ("<eos>", "<unk>")
) -> PreTrainedTokenizerFast:
    """A tokeniser with one token for each piece of text that matches a pattern and occurs in texts.

    Other pieces become the unknown token. `special` holds the token that ends a text, the unknown
    token, and any others; these come first in the vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(pieces), "isolated")
    found = sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {piece: i for i, piece in enumerate([*special, *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[0],
        pad_token=special[0],
        unk_token=special[1],
        additional_special_tokens=list(special[2:]),
        clean_up_tokenization_spaces=False,
    )


def causal_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention in float32 without a mask, for texts padded on the right.

    A token does not see later tokens, so padding needs no mask. With a mask, or in bfloat16 on a
    CPU, attention takes twice as long.
    """
    groups = query.shape[1] // key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query.float(),
            key.repeat_interleave(groups, 1).float(),
            value.repeat_interleave(groups, 1).float(),
            is_causal=True,
            scale=kwargs["scaling"],
        )
    return mixed.transpose(1, 2).to(query.dtype), None


AttentionInterface.register(causal_attention.__name__, causal_attention)


def small_model(tokenizer: Any) -> Any:
    """An untrained Llama with four layers in float32, for the vocabulary of a tokeniser."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def rounded_model(folder: Path) -> Any:
    """A trained small model in float32, with weights rounded to bfloat16 as in the package."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float()


def ship_model(folder: Path, target: Path) -> None:
    """Save a model in bfloat16 and its tokeniser, readable by all users."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)


def base_model() -> Any:
    """The default model in float32."""
    return AutoModelForCausalLM.from_pretrained(embedded.directory(), dtype=torch.float32)


def shipped_form(folder: Path) -> Any:
    """The default model with a trained adapter, rounded to bfloat16 and merged in float32."""
    model = PeftModel.from_pretrained(base_model(), folder)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16().float()
    return model.merge_and_unload()  # type: ignore[operator]


def ship_adapter(folder: Path, target: Path) -> str:
    """Save an adapter on the default model in bfloat16; return the hash of the base model."""
    weights = load_file(folder / "adapter_model.safetensors")
    narrow = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(narrow, target / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = embedded.NAME
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1))
    plain = base_model()
    return fingerprint(plain.state_dict(), plain.config.to_dict())
