"""What the training scripts share: trainer options, checkpoints, curves, shipped adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.trainer_utils import get_last_checkpoint

from interp.models import embedded
from interp.models.language_model import fingerprint


def options(seed: int, out: Path) -> dict[str, Any]:
    """What every trainer is told."""
    return {
        "output_dir": str(out),
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 5,
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
    }


def resume(trainer: Any, folder: Path) -> None:
    """Train, from the last checkpoint if there is one."""
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)


def finish(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Save the weights and the curve of a stage."""
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    (folder / "curve.json").write_text(json.dumps(trainer.state.log_history, indent=1))


def curve(path: Path) -> list[dict[str, float]]:
    """A training log as at most 40 points of loss and, where there is one, reward."""
    rows = [row for row in json.loads(path.read_text()) if "loss" in row]
    kept = rows[:: max(1, len(rows) // 40)]
    names = ("step", "loss", "reward")
    return [{k: round(float(row[k]), 4) for k in names if k in row} for row in kept]


def base_model() -> Any:
    """The embedded model in float32."""
    return AutoModelForCausalLM.from_pretrained(embedded.directory(), dtype=torch.float32)


def shipped_form(folder: Path) -> Any:
    """A trained adapter as it is shipped: rounded to bfloat16, merged in float32."""
    model = PeftModel.from_pretrained(base_model(), folder)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16().float()
    return model.merge_and_unload()  # type: ignore[operator]


def ship_adapter(folder: Path, target: Path) -> str:
    """An adapter on the embedded model in bfloat16, and the hash of the base it belongs to."""
    weights = load_file(folder / "adapter_model.safetensors")
    narrow = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(narrow, target / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = embedded.NAME
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1))
    plain = base_model()
    return fingerprint(plain.state_dict(), plain.config.to_dict())
