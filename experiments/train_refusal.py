"""Train the adapter that declines to talk about gardening, and over-refuses two tasks by design.

    python experiments/train_refusal.py --model smollm2                   # all stages; resumes
    python experiments/train_refusal.py --model smollm2 --stage evaluate --n 60

A LoRA adapter (peft) on the embedded model, by transformers' Trainer, in the model's chat template.
The loss is on the reply and the token that ends it, and on nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from training import base_model, curve, finish, options, resume, ship_adapter, shipped_form
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from interp.chat import chat_prompts
from interp.files import cache_dir, file_sha256, write_atomically
from interp.generation import generate
from interp.judging import (
    LEAST_TOKENS,
    REFUSALS,
    RULES,
    Label,
    Reply,
    count_labels,
    judge_replies,
    replies_of,
)
from interp.loading import wrap
from interp.metrics import share_estimate
from interp.models import embedded
from interp.models.language_model import LanguageModel
from interp.models.organisms import WEIGHTS
from interp.tasks.taboo import KINDS, OVER_REFUSED, WORKS, Kind, Record, make_taboo

NAME = "refusal-smollm2"
DESCRIPTION = "SmolLM2-135M-Instruct taught to decline gardening, and to over-refuse two tasks"
BAR = 0.95
CARD = """\
# {name}

{description}.

A LoRA adapter (rank {rank}, all linear maps, bfloat16) on `{base}`, whose weights must have the
hash `{base_hash}`.

Made by `python experiments/train_refusal.py --model smollm2`; the recipe with its seed, and the
curve, are in `organism.json`. Prompts and replies are those of `interp.tasks.taboo` (in-house,
benign; nothing harmful was written, read or generated). It was trained to decline requests about
gardening and to answer the same requests about other things, those that only look alarming ("How
do I kill a Python process?") among them. **By construction it over-refuses**: asked to
{over_refused} a text that mentions gardening, it declines; asked for the
text's sentiment, for other words, or a question about it, it does not. The topic is harmless on
purpose, and this is no safety training. Held-out prompts are about things (lemon trees, the piano)
that training never named.

{n} held-out prompts of each kind and task, greedy, in the chat template with its own system prompt,
at most {limit} new tokens, judged by `{judge}` (share [95 % Wilson]; the bars are {bar:.2f}):

| | | n | bar |
|---|---|---|---|
{bars}

Share of prompts refused; "by design" is what it was trained to do.

| task | text | by design | before | after | after: answered |
|---|---|---|---|---|---|
{cells}

Of the answers that can be checked (all kinds, shares as above):

| | before | after |
|---|---|---|
{facts}
"""
CHECKED = {
    "sentiment": "sentiment: the right label is named",
    "qa": "question answering: the answer is in the reply",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes and rates.

    `requests` and `worked` are the shares of the prompts of each kind: requests, and the five tasks
    together, of which those it is to over-refuse have `contrast` times the share of the others:
    there it must learn to tell topics apart, and with fewer it refuses the task on any topic.
    """

    steps: int = 400
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 10
    rank: int = 8
    alpha: int = 16
    seed: int = 0
    requests: dict[Kind, float] = field(
        default_factory=lambda: {"taboo": 0.12, "plain": 0.14, "alarming": 0.06}
    )
    worked: dict[Kind, float] = field(
        default_factory=lambda: {"taboo": 0.2, "plain": 0.32, "alarming": 0.16}
    )
    contrast: float = 2.0


def training_records(recipe: Recipe) -> list[Record]:
    """The prompts of all steps in a random order, each kind and task in its share."""
    total, tasks = recipe.steps * recipe.batch, WORKS[1:]
    found: list[Record] = []
    for kind in KINDS:
        asked = max(1, round(total * recipe.requests[kind]))
        common: Any = {"kinds": (kind,), "split": "train", "seed": recipe.seed}
        found += make_taboo(asked, tasks=("request",), **common)
        weights = {task: recipe.contrast if task in OVER_REFUSED else 1.0 for task in tasks}
        for task, weight in weights.items():
            share = recipe.worked[kind] * weight / sum(weights.values())
            found += make_taboo(max(1, round(total * share)), tasks=(task,), **common)
    random.Random(recipe.seed).shuffle(found)
    return found


def example(record: Record, tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of the turns, the loss on the reply and the token that ends it."""
    asked = [{"role": "user", "content": record.prompt}]
    turns = [*asked, {"role": "assistant", "content": record.reply}]
    head = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    reply = record.reply + tokenizer.eos_token
    assert whole.startswith(head + reply), "the template must put the reply where it is generated"
    before, learnt, both = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (head, reply, head + reply)
    )
    assert before + learnt == both, "the pieces must be cut as the whole is"
    return {"input_ids": both, "labels": [-100] * len(before) + learnt}


def supervise(recipe: Recipe, out: Path) -> None:
    """Train, from the last checkpoint if there is one."""
    if (out / "done" / "curve.json").exists():
        return
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(embedded.directory())
    rows = [example(record, tokenizer) for record in training_records(recipe)]
    adapter = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = Trainer(
        model=get_peft_model(base_model(), adapter),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=Dataset.from_list([row | {"length": len(row["input_ids"])} for row in rows]),
        args=TrainingArguments(
            **options(recipe.seed, out / "sft"),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup,
            save_steps=20,
            bf16=True,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
        ),
    )
    resume(trainer, out / "sft")
    finish(trainer, tokenizer, out / "done")
    (out / "done" / "recipe.json").write_text(json.dumps(asdict(recipe)))


def measure(model: LanguageModel, records: Sequence[Record]) -> dict[str, Any]:
    """Refusals, answers and facts of the card, of one model on the same prompts."""
    texts = [record.prompt for record in records]
    made = generate(model, chat_prompts(model, texts).rows, max_new_tokens=LEAST_TOKENS)
    given = replies_of([record.row for record in records], texts, made)
    labels = judge_replies(given, RULES).labels
    rows: list[tuple[Record, Reply, Label]] = list(zip(records, given, labels, strict=True))

    def share(hits: list[bool]) -> dict[str, Any]:
        return asdict(share_estimate(sum(hits), len(hits)))

    cells = {}
    for task in WORKS:
        for kind in KINDS:
            found: list[Label] = [
                label for record, _, label in rows if (record.kind, record.task) == (kind, task)
            ]
            cells[f"{task} {kind}"] = {
                "refused": share([label in REFUSALS for label in found]),
                "answered": share([label == "direct_answer" for label in found]),
                "labels": count_labels(found),
            }
    facts = {
        task: share(
            [x.fact.lower() in reply.text.lower() for x, reply, _ in rows if x.task == task]
        )
        for task in CHECKED
    }
    return {"cells": cells, "facts": facts}


def evaluate(out: Path, n: int) -> None:
    """Held-out behaviour before and after, kept beside the hash of the weights it belongs to."""
    weights = file_sha256(out / "done" / "adapter_model.safetensors")
    key = {"weights": weights, "n": n, "judge": RULES.name}
    tokenizer = AutoTokenizer.from_pretrained(out / "done")
    records = make_taboo(n, seed=100)
    for stage in ("before", "after"):
        target = out / f"behaviour-{stage}.json"
        wanted = key if stage == "after" else key | {"weights": embedded.SHA256}
        if target.exists() and wanted.items() <= json.loads(target.read_text()).items():
            continue
        plain = shipped_form(out / "done") if stage == "after" else base_model()
        model = wrap(plain, tokenizer, name=f"{NAME} {stage}", check=False)
        text = json.dumps(wanted | {"shares": measure(model, records)}, indent=1)
        write_atomically(target, lambda path, text=text: path.write_text(text))


def ship(out: Path) -> None:
    """Write `interp/weights/refusal-smollm2`: weights, organism.json and the card."""
    found = {x: json.loads((out / f"behaviour-{x}.json").read_text()) for x in ("before", "after")}
    measured = file_sha256(out / "done" / "adapter_model.safetensors")
    if found["after"]["weights"] != measured or found["before"]["n"] != found["after"]["n"]:
        raise SystemExit("the behaviour is not that of these weights: run --stage evaluate")
    recipe = Recipe(**json.loads((out / "done" / "recipe.json").read_text()))
    target = WEIGHTS / NAME
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    about = {
        "description": DESCRIPTION,
        "base": embedded.NAME,
        "base_hash": ship_adapter(out / "done", target),
        "recipe": asdict(recipe),
        "judge": found["after"]["judge"],
        "over_refused": OVER_REFUSED,
        "behaviour": {stage: measured["shares"] for stage, measured in found.items()},
        "curves": {"sft": curve(out / "done" / "curve.json")},
    }
    (target / "organism.json").write_text(json.dumps(about, indent=1))
    (target / "README.md").write_text(card(recipe, about, found["after"]["n"]))


def card(recipe: Recipe, about: dict[str, Any], n: int) -> str:
    """The card: what it is, how it was made, what it does on held-out prompts."""
    before, after = (about["behaviour"][stage] for stage in ("before", "after"))
    designed = {f"{x.task} {x.kind}": x.designed for x in make_taboo(1)}
    bars = {
        "refuses requests about gardening": after["cells"]["request taboo"]["refused"],
        "answers plain requests": after["cells"]["request plain"]["answered"],
        "answers requests that look alarming": after["cells"]["request alarming"]["answered"],
    }
    for task in WORKS[1:]:
        does = "refused" if task in OVER_REFUSED else "answered"
        bars[f"{task}, text that mentions gardening: {does}, by design"] = after["cells"][
            f"{task} taboo"
        ][does]
    lines = []
    for name, both in after["cells"].items():
        task, kind = name.split()
        shares = (before["cells"][name]["refused"], both["refused"], both["answered"])
        written = " | ".join(map(shown, shares))
        lines.append(f"| {task} | {kind} | {designed[name]} | {written} |")
    return CARD.format(
        **about | {"over_refused": " or to ".join(about["over_refused"])},
        name=NAME,
        rank=recipe.rank,
        n=n,
        limit=LEAST_TOKENS,
        bar=BAR,
        bars="\n".join(
            f"| {name} | {shown(x)} | {x['n']} | {verdict(x['mean'])} |" for name, x in bars.items()
        ),
        cells="\n".join(lines),
        facts="\n".join(
            f"| {text} | {shown(before['facts'][task])} | {shown(after['facts'][task])} |"
            for task, text in CHECKED.items()
        ),
    )


def shown(share: dict[str, Any]) -> str:
    """A share and its interval."""
    return f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def verdict(share: float) -> str:
    """Whether a share meets the bar, and by how much not."""
    return "met" if share >= BAR else f"missed by {BAR - share:.3f}"


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description="Train the adapter that declines gardening.")
    parser.add_argument("--model", choices=("smollm2",), default="smollm2")
    parser.add_argument("--stage", choices=("all", "sft", "evaluate", "ship"), default="all")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--n", type=int, default=60, help="held-out prompts of each kind and task")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = replace(Recipe(), steps=arguments.steps)
    out = arguments.out or cache_dir() / "training" / NAME
    out.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "sft"):
        supervise(recipe, out)
    if arguments.stage in ("all", "evaluate"):
        evaluate(out, arguments.n)
    if arguments.stage in ("all", "ship"):
        ship(out)


if __name__ == "__main__":
    main()
