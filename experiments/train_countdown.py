"""Train the models that check their own CountDown answers: supervised, then by reinforcement.

    python experiments/train_countdown.py --model tiny                 # all stages, under an hour
    python experiments/train_countdown.py --model smollm2 --stage sft  # resumes where it stopped

smollm2 learns a LoRA adapter (peft), tiny learns from nothing. The first stage is transformers'
Trainer, the second trl's GRPOTrainer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from interp.files import cache_dir
from interp.models import embedded
from interp.tasks.arithmetic import score_answer
from interp.tasks.countdown import make_countdown, write_trace

PIECES = r"[0-9]|\n| \(| </|<| this| not|this|not| [A-Za-z']+|[A-Za-z]+|'s| [-+=]|[-+=]|[.,:()>]| "
"""How the tiny model's tokeniser cuts text: the pieces SmolLM2 cuts these texts into."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of supervised training.

    A trace has 0 to `most[operands]` wrong attempts, evenly; a share `unsolved` stops after the
    wrong ones, so that the last sum of a text is not always right.
    """

    steps: int
    batch: int
    rate: float
    schedule: str
    most: dict[int, int]
    unsolved: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes and rates of both stages."""

    phases: tuple[Phase, ...]
    rl_steps: int
    rl_prompts: int
    rl_rate: float
    completion: int = 256
    seed: int = 0


SEARCH = {3: 6, 4: 5}
"""All six wrong ways of three numbers: the search a trace shows is in random order."""

RECIPES = {
    "smollm2": Recipe(
        phases=(
            Phase(
                steps=150,
                batch=8,
                rate=1e-3,
                schedule="constant_with_warmup",
                most={3: 4, 4: 3},
                unsolved=0.25,
            ),
            Phase(steps=420, batch=6, rate=1e-3, schedule="cosine", most=SEARCH, unsolved=0.3),
        ),
        rl_steps=40,
        rl_prompts=4,
        rl_rate=5e-5,
    ),
    "tiny": Recipe(
        phases=(
            Phase(steps=1800, batch=32, rate=2e-3, schedule="cosine", most=SEARCH, unsolved=0.3),
        ),
        rl_steps=100,
        rl_prompts=8,
        rl_rate=5e-5,
    ),
}


def traces(phase: Phase, n: int, seed: int) -> list[tuple[str, str, bool]]:
    """(prompt, completion, finished) of n training problems."""
    rng = random.Random(seed)
    written = []
    for problem in make_countdown(n, operands=(3, 3, 4), seed=seed, split="train"):
        solved = rng.random() >= phase.unsolved
        most = phase.most[len(problem.numbers)]
        failures = rng.randint(0, most) if solved else most
        text = write_trace(problem, rng, failures=failures, solved=solved)
        written.append((problem.prompt(), text, solved))
    return written


def tiny_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token a piece, for the pieces that occur."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(PIECES), "isolated")
    pieces = sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {piece: i for i, piece in enumerate(["<eos>", "<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def fresh(kind: str, recipe: Recipe) -> tuple[Any, Any]:
    """The untrained model and its tokeniser."""
    torch.manual_seed(recipe.seed)
    if kind == "smollm2":
        folder = embedded.directory()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adapter = LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(folder)
    tokenizer = tiny_tokenizer(
        [prompt + text for prompt, text, _ in traces(recipe.phases[0], 500, 0)]
    )
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
        eos_token_id=0,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer


def examples(phase: Phase, seed: int, tokenizer: Any) -> Dataset:
    """Token ids, the loss on the completion only; only a finished text ends in end-of-text."""
    rows = []
    for prompt, text, finished in traces(phase, phase.steps * phase.batch, seed):
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = tokenizer(text, add_special_tokens=False)["input_ids"]
        tail = [*tail, tokenizer.eos_token_id] if finished else tail
        ids = head + tail
        rows.append({"input_ids": ids, "labels": [-100] * len(head) + tail, "length": len(ids)})
    return Dataset.from_list(rows)


def shared(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(out),
        "seed": recipe.seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 5,
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
    }


def supervise(kind: str, recipe: Recipe, out: Path) -> None:
    """Stage one, its phases in turn."""
    model, tokenizer = fresh(kind, recipe)
    for number, phase in enumerate(recipe.phases):
        name = f"sft{number}"
        done = out / f"{name}-done"
        if (done / "curve.json").exists():
            model = reload(kind, done)
            continue
        trainer = Trainer(
            model=model,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            train_dataset=examples(phase, recipe.seed + number, tokenizer),
            args=TrainingArguments(
                **shared(recipe, out / name),
                max_steps=phase.steps,
                per_device_train_batch_size=phase.batch,
                learning_rate=phase.rate,
                lr_scheduler_type=phase.schedule,
                warmup_steps=20,
                save_steps=50 if kind == "smollm2" else 200,
                bf16=kind == "smollm2",
                train_sampling_strategy="group_by_length",
                length_column_name="length",
            ),
        )
        resume(trainer, out / name)
        finish(trainer, tokenizer, done)


def reload(kind: str, folder: Path) -> Any:
    """The trainable model of an earlier stage."""
    if kind == "smollm2":
        base = AutoModelForCausalLM.from_pretrained(embedded.directory(), dtype=torch.float32)
        return PeftModel.from_pretrained(base, folder, is_trainable=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def resume(trainer: Any, folder: Path) -> None:
    """Train, from the last checkpoint if there is one."""
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)


def finish(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Save the weights and the curve of a stage."""
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    (folder / "curve.json").write_text(json.dumps(trainer.state.log_history, indent=1))


def reward(prompts: list[str], completions: list[str], numbers: Any, target: Any, **_: Any) -> Any:
    """The paper's 0, 0.1 or 1 of each completion."""
    rows = zip(completions, numbers, target, strict=True)
    return [score_answer(text, asked, goal) for text, asked, goal in rows]


def reinforce(kind: str, recipe: Recipe, out: Path) -> None:
    """Stage two: GRPO on the paper's reward, from the weights of stage one."""
    folder = out / f"sft{len(recipe.phases) - 1}-done"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = reload(kind, folder)
    problems = make_countdown(
        recipe.rl_steps * recipe.rl_prompts, seed=recipe.seed + 1, split="train"
    )
    rows = [
        {"prompt": p.prompt(), "numbers": list(p.numbers), "target": p.target} for p in problems
    ]
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            **shared(recipe, out / "rl"),
            max_steps=recipe.rl_steps,
            per_device_train_batch_size=recipe.rl_prompts * 8,
            num_generations=8,
            max_completion_length=recipe.completion,
            learning_rate=recipe.rl_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            save_steps=10,
            temperature=1.0,
            beta=0.0,
            bf16=kind == "smollm2",
            gradient_checkpointing=False,
            mask_truncated_completions=False,
        ),
    )
    resume(trainer, out / "rl")
    finish(trainer, tokenizer, out / "rl-done")


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description="Train the models that check their own CountDown answers."
    )
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--stage", choices=("all", "sft", "rl"), default="all")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.model]
    out = arguments.out or cache_dir() / "training" / f"countdown-{arguments.model}"
    out.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "sft"):
        supervise(arguments.model, recipe, out)
    if arguments.stage in ("all", "rl"):
        reinforce(arguments.model, recipe, out)


if __name__ == "__main__":
    main()
