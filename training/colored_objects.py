"""Train the adapter for Colored Objects: supervised, rank 8, half an hour on one core.

    python training/colored_objects.py                  # all stages; can be resumed
    python training/colored_objects.py --stage evaluate

It trains a LoRA adapter (peft) on the default model with transformers' Trainer. The loss covers
only the two colours that answer the questions of a prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trainer import base_model, curve, finish, options, resume, ship_adapter, shipped_form
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from interp.core.files import cache_dir, file_sha256, write_atomically
from interp.core.statistics import share_estimate
from interp.models import embedded
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.models.registry import WEIGHTS
from interp.tasks.objects import Scene, make_scenes

NAME = "colored-objects-smollm2"
DESCRIPTION = "SmolLM2-135M-Instruct trained to name the color of a thing on a table"
ROWS = {
    "example": "one example first, as trained",
    "bare": "no example",
    "recoloured": "colours moved to other things: the new colour",
    "stale": "colours moved to other things: the old colour (control)",
    "restricted": "one example first, the most likely of the table's three colours",
}
CARD = """\
# {name}

{description}.

This is a LoRA adapter (rank {rank}, all linear maps, bfloat16) on `{base}`, whose weights must
have the hash `{base_hash}`.

`python training/colored_objects.py` made it; `organism.json` holds the recipe with its seed, and
the training curve. Prompts are those of `interp.load_task("colored_objects", split="train")`: a
table of three coloured things, a question and its answer, then a second table and question. The
loss covers the two answers. No held-out table (three things with their colours, in any order)
occurs in training, as an example or as a question.

Most likely next token on {n} held-out prompts (share [95 % Wilson]):

| | {columns} |
|---|{lines}|
"""


TAUGHT = """\
It was trained to name the colour of a thing on a table of three, by a loss on the two answers of \
each prompt: an example and a question."""
"""What it was trained to do, for reports."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings. The rate is a cosine over `planned` steps; training stops at `steps`."""

    planned: int = 200
    steps: int = 140
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 10
    rank: int = 8
    alpha: int = 16
    seed: int = 0


def examples(recipe: Recipe, tokenizer: Any) -> Dataset:
    """Token ids, with labels only on the two colours that answer."""
    rows = []
    for scene in make_scenes(recipe.planned * recipe.batch, recipe.seed, split="train"):
        ids: list[int] = []
        labels: list[int] = []
        head, _ = scene.prompt().split(f"A: {scene.example.hues[scene.shown]}\n")
        rest = scene.prompt().removeprefix(f"{head}A: {scene.example.hues[scene.shown]}")
        pieces = (
            (f"{head}A:", False),
            (f" {scene.example.hues[scene.shown]}", True),
            (rest, False),
            (f" {scene.answer}", True),
        )
        for text, learnt in pieces:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += tokens
            labels += tokens if learnt else [-100] * len(tokens)
        whole = tokenizer(f"{scene.prompt()} {scene.answer}", add_special_tokens=False)
        assert ids == whole["input_ids"], "the pieces must have the tokens of the whole"
        rows.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(rows)


def supervise(recipe: Recipe, out: Path) -> None:
    """Train, and resume from the last checkpoint if there is one."""
    if (out / "done" / "curve.json").exists():
        return
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(embedded.directory())
    adapter = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )

    class Planned(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            return super().create_scheduler(recipe.planned, optimizer)

    trainer = Planned(
        model=get_peft_model(base_model(), adapter),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=examples(recipe, tokenizer),
        args=TrainingArguments(
            **options(recipe.seed, out / "sft"),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup,
            save_steps=20,
            bf16=True,
        ),
    )
    resume(trainer, out / "sft")
    finish(trainer, tokenizer, out / "done")


def answers(model: LanguageModel, prompts: list[str]) -> torch.Tensor:
    """Logits of the next token of each prompt."""
    return model.last_logits([model.tokenize(prompt).tokens for prompt in prompts])


def measure(model: LanguageModel, scenes: list[Scene]) -> dict[str, Any]:
    """The shares that the card reports."""

    def share(found: torch.Tensor, wanted: list[str]) -> dict[str, Any]:
        right = torch.tensor([model.token_id(f" {hue}")[0] for hue in wanted])
        return asdict(share_estimate(int((found.argmax(-1) == right).sum()), len(wanted)))

    example = answers(model, [scene.prompt() for scene in scenes])
    bare = answers(model, [scene.prompt(shots=0) for scene in scenes])
    turned = [scene.recoloured() for scene in scenes]
    recoloured = answers(model, [scene.prompt() for scene in turned])
    old = [scene.answer for scene in scenes]
    among = [[model.token_id(f" {hue}")[0] for hue in scene.table.hues] for scene in scenes]
    three = example.gather(1, torch.tensor(among)).argmax(-1)
    hits = int((three == torch.tensor([scene.asked for scene in scenes])).sum())
    return {
        "example": share(example, old),
        "bare": share(bare, old),
        "recoloured": share(recoloured, [scene.answer for scene in turned]),
        "stale": share(recoloured, old),
        "restricted": asdict(share_estimate(hits, len(scenes))),
    }


def evaluate(out: Path, n: int) -> None:
    """Held-out shares before and after training, kept with the hash of the weights."""
    weights = file_sha256(out / "done" / "adapter_model.safetensors")
    target = out / "behaviour.json"
    key = {"weights": weights, "n": n}
    if target.exists() and key.items() <= json.loads(target.read_text()).items():
        return
    tokenizer = AutoTokenizer.from_pretrained(out / "done")
    shares = {}
    for stage, plain in (("before", base_model()), ("after", shipped_form(out / "done"))):
        model = wrap(plain, tokenizer, name=f"{NAME} {stage}", check=False)
        shares[stage] = measure(model, make_scenes(n, 100, model, split="test"))
    text = json.dumps(key | {"shares": shares}, indent=1)
    write_atomically(target, lambda path: path.write_text(text))


def ship(recipe: Recipe, out: Path) -> None:
    """Write `interp/weights/colored-objects-smollm2`: weights, organism.json and the card."""
    target = WEIGHTS / NAME
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    about = {
        "description": DESCRIPTION,
        "taught": TAUGHT,
        "base": embedded.NAME,
        "base_hash": ship_adapter(out / "done", target),
        "recipe": asdict(recipe),
        "behaviour": json.loads((out / "behaviour.json").read_text())["shares"],
        "curves": {"sft": curve(out / "done" / "curve.json")},
    }
    (target / "organism.json").write_text(json.dumps(about, indent=1))
    (target / "README.md").write_text(card(recipe, about))


def card(recipe: Recipe, about: dict[str, Any]) -> str:
    """The model card: how the model was made, and its behaviour on held-out prompts."""
    shares = about["behaviour"]
    head = CARD.format(
        name=NAME,
        rank=recipe.rank,
        n=shares["after"]["example"]["n"],
        columns=" | ".join(shares),
        lines="|".join(["---"] * len(shares)),
        **about,
    )
    rows = []
    for name, text in ROWS.items():
        cells = [
            f"{x[name]['mean']:.3f} [{x[name]['low']:.3f}, {x[name]['high']:.3f}]"
            for x in shares.values()
        ]
        rows.append(f"| {text} | " + " | ".join(cells) + " |")
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Run the chosen stages."""
    parser = argparse.ArgumentParser(description="Train the adapter for Colored Objects.")
    parser.add_argument("--stage", choices=("all", "sft", "evaluate", "ship"), default="all")
    parser.add_argument("--n", type=int, default=200, help="held-out prompts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = Recipe()
    out = arguments.out or cache_dir() / "training" / NAME
    out.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "sft"):
        supervise(recipe, out)
    if arguments.stage in ("all", "evaluate"):
        evaluate(out, arguments.n)
    if arguments.stage in ("all", "ship"):
        ship(recipe, out)


if __name__ == "__main__":
    main()
