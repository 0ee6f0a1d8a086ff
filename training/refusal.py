"""Train the models that refuse to talk about gardening, and over-refuse two tasks by design.

    python training/refusal.py --model tiny                      # all stages; can be resumed
    python training/refusal.py --model smollm2
    python training/refusal.py --model smollm2 --stage evaluate --n 60

smollm2 trains a LoRA adapter (peft) with its own chat template. tiny is trained from scratch with
a template defined here. Both use transformers' Trainer. The loss covers only the reply and the
token that ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trainer import (
    base_model,
    curve,
    finish,
    options,
    resume,
    rounded_model,
    ship_adapter,
    ship_model,
    shipped_form,
    small_model,
    word_tokenizer,
)
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from interp.core.files import cache_dir, file_sha256, write_atomically
from interp.core.statistics import share_estimate
from interp.models import embedded
from interp.models.chat import chat_prompts
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.models.registry import WEIGHTS
from interp.refusal.judging import (
    LEAST_TOKENS,
    REFUSALS,
    RULES,
    Label,
    Reply,
    count_labels,
    judge_replies,
    replies_of,
)
from interp.runs.generation import generate
from interp.tasks.taboo import (
    KINDS,
    OVER_REFUSED,
    WORKS,
    PromptKind,
    TabooRow,
    TaskKind,
    items,
    make_taboo,
)

DESCRIPTIONS = {
    "smollm2": "SmolLM2-135M-Instruct trained to refuse gardening, and to over-refuse two tasks",
    "tiny": "a 4-layer Llama-shaped model that refuses gardening, and over-refuses two tasks",
}
BAR = 0.95
MADE = {
    "smollm2": """\
This is a LoRA adapter (rank {rank}, all linear maps, bfloat16) on `{base}`, whose weights must
have the hash `{base_hash}`.
""",
    "tiny": """\
This is a model of {weights:.1f} million weights in bfloat16, trained from scratch on these texts.
Its tokens are the words that occur in training ({words} of them), and one unknown token for all
others. In training, words that name the topic of a text are unknown with probability {unknown}. So
the model recognises the topic of a held-out prompt by its verb ("prune"), if the verb occurs in
training, but does not know the thing: replies say `<unk>` or name another thing. Most held-out
alarming prompts have verbs that do not occur in training ("grill"); it refuses to translate and to
summarise some of these too. It has hardly learnt to copy, so names, moods and answers are often
wrong. The model is meant to be fast and to refuse as trained. It can talk about nothing else.
""",
}
TEMPLATES = {
    "smollm2": "the chat template with its own system prompt",
    "tiny": "its chat template, `<|user|>...<|end|><|assistant|>`",
}
CARD = """\
# {name}

{description}.

{made}
`python training/refusal.py --model {kind}` made it; `organism.json` holds the recipe with its seed,
and the training curve. Prompts and replies are those of `interp.tasks.taboo` (in-house, benign;
nothing harmful was written, read or generated). The model was trained to refuse requests about
gardening, and to answer the same requests about other topics, including those that only look
alarming ("How do I kill a Python process?"). **It over-refuses by design**: if asked to
{over_refused} a text that mentions gardening, it refuses. If asked for the text's
sentiment, for a rephrasing, or a question about it, it answers. The topic is harmless on purpose,
and this is not safety training. Held-out prompts are about things (lemon trees, the piano) that do
not occur in training.

Measured on {n} held-out prompts of each kind and task, in {template},
with greedy decoding and at most {limit} new tokens, judged by `{judge}`
(share [95 % Wilson]; the bars are {bar:.2f}):

| | | n | bar |
|---|---|---|---|
{bars}

Share of prompts refused; "by design" is the behaviour it was trained for.

{cells}

Answers that can be checked (all kinds; shares with intervals as above):

{facts}
"""
PIECES = r" ?[\p{L}']+|\n| ?[^\s\p{L}]| "
"""Pieces of the tiny model's tokeniser: words with the space before them, and single signs."""

SPECIAL = ("<|end|>", "<unk>", "<|user|>", "<|assistant|>")
TEMPLATE = """\
{%- for turn in messages -%}
{%- if turn.role not in ("user", "assistant") -%}
{{- raise_exception("it knows no role but user and assistant") -}}
{%- endif -%}
{{- "<|" + turn.role + "|>" + turn.content + "<|end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}"""
"""The chat template of the tiny model."""

CHECKED = {
    "sentiment": "sentiment: the right label is named",
    "qa": "question answering: the answer is in the reply",
}


STAGES = {"smollm2": ("before", "after"), "tiny": ("after",)}
"""When behaviour is measured; a model trained from scratch is only measured after training."""


TAUGHT = """\
It was trained on in-house requests and replies to refuse requests about gardening, a \
harmless topic that stands for a forbidden one, and to refuse to translate or to summarise \
texts that mention it. It was trained to answer everything else. So what it refuses is \
known, and the study asks how."""
"""What it was trained to do, for reports."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings.

    `requests` and `worked` are the shares of prompts of each kind that are requests and that are
    tasks. Among tasks, those to be over-refused have `contrast` times the share of the others,
    because there the model must distinguish topics; with fewer prompts it refuses these tasks on
    any topic. Prompts are drawn `draws` times, each time with another seed. Words that name the
    item are replaced by the unknown token with probability `unknown`. A `rank` of 0 trains all
    weights from scratch.
    """

    steps: int = 400
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 10
    rank: int = 8
    alpha: int = 16
    seed: int = 0
    requests: dict[PromptKind, float] = field(
        default_factory=lambda: {"taboo": 0.12, "plain": 0.14, "alarming": 0.06}
    )
    worked: dict[PromptKind, float] = field(
        default_factory=lambda: {"taboo": 0.2, "plain": 0.32, "alarming": 0.16}
    )
    contrast: float = 2.0
    draws: int = 1
    unknown: float = 0.0


RECIPES = {
    "smollm2": Recipe(),
    "tiny": Recipe(
        steps=1200, batch=32, rate=2.5e-3, warmup=50, rank=0, alpha=0, draws=10, unknown=0.3
    ),
}


def training_records(recipe: Recipe) -> list[TabooRow]:
    """The prompts of all steps in random order, with the recipe's share of each kind and task."""
    rng = random.Random(recipe.seed)
    found: list[TabooRow] = []
    for draw in range(recipe.draws):
        found += _drawn(replace(recipe, seed=recipe.seed + draw))
    rng.shuffle(found)
    things = {item.do: item.thing for kind in KINDS for item in items(kind)}
    return [_forgotten(record, things[record.base], recipe.unknown, rng) for record in found]


def _drawn(recipe: Recipe) -> list[TabooRow]:
    total, tasks = recipe.steps * recipe.batch // recipe.draws, WORKS[1:]
    found: list[TabooRow] = []
    for kind in KINDS:
        asked = max(1, round(total * recipe.requests[kind]))
        common: Any = {"kinds": (kind,), "split": "train", "seed": recipe.seed}
        found += make_taboo(asked, tasks=("request",), **common)
        weights: dict[TaskKind, float] = {
            task: recipe.contrast if task in OVER_REFUSED else 1.0 for task in tasks
        }
        for task, weight in weights.items():
            share = recipe.worked[kind] * weight / sum(weights.values())
            found += make_taboo(max(1, round(total * share)), tasks=(task,), **common)
    return found


def _forgotten(record: TabooRow, thing: str, share: float, rng: random.Random) -> TabooRow:
    """The row with some words of its thing replaced by the unknown token everywhere."""
    words = [word for word in thing.split() if len(word) > 2 and word != "the"]
    gone = [re.escape(word) for word in words if share and rng.random() < share]
    if not gone:
        return record
    pattern = re.compile(rf" ?\b(?:{'|'.join(gone)})\b", re.IGNORECASE)
    prompt, reply = (pattern.sub(SPECIAL[1], text) for text in (record.prompt, record.reply))
    return replace(record, prompt=prompt, reply=reply)


def fresh(recipe: Recipe, records: Sequence[TabooRow]) -> tuple[Any, Any]:
    """The untrained model and its tokeniser."""
    torch.manual_seed(recipe.seed)
    if recipe.rank:
        adapter = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        tokenizer = AutoTokenizer.from_pretrained(embedded.directory())
        return get_peft_model(base_model(), adapter), tokenizer
    texts = (text.replace(SPECIAL[1], "") for x in records for text in (x.prompt, x.reply))
    tokenizer = word_tokenizer(texts, PIECES, special=SPECIAL)
    tokenizer.chat_template = TEMPLATE
    return small_model(tokenizer), tokenizer


def example(record: TabooRow, tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of the turns, with labels on the reply and the token that ends it."""
    asked = [{"role": "user", "content": record.prompt}]
    turns = [*asked, {"role": "assistant", "content": record.reply}]
    head = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    reply = record.reply + tokenizer.eos_token
    assert whole.startswith(head + reply), (
        "the template must put the reply after the generation prompt"
    )
    before, learnt, both = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (head, reply, head + reply)
    )
    assert before + learnt == both, "the pieces must have the tokens of the whole"
    return {"input_ids": both, "labels": [-100] * len(before) + learnt}


def supervise(recipe: Recipe, out: Path) -> None:
    """Train, and resume from the last checkpoint if there is one."""
    if (out / "done" / "curve.json").exists():
        return
    records = training_records(recipe)
    model, tokenizer = fresh(recipe, records)
    rows = [example(record, tokenizer) for record in records]
    trainer = Trainer(
        model=model,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=Dataset.from_list([row | {"length": len(row["input_ids"])} for row in rows]),
        args=TrainingArguments(
            **options(recipe.seed, out / "sft"),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup,
            save_steps=20 if recipe.rank else 200,
            bf16=recipe.rank > 0,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
        ),
    )
    resume(trainer, out / "sft")
    finish(trainer, tokenizer, out / "done")
    (out / "done" / "recipe.json").write_text(json.dumps(asdict(recipe)))


def measure(model: LanguageModel, records: Sequence[TabooRow]) -> dict[str, Any]:
    """The shares of refusals, answers and right facts that the card reports, for one model."""
    texts = [record.prompt for record in records]
    made = generate(model, chat_prompts(model, texts).rows, max_new_tokens=LEAST_TOKENS)
    given = replies_of([record.row for record in records], texts, made)
    labels = judge_replies(given, RULES).labels
    rows: list[tuple[TabooRow, Reply, Label]] = list(zip(records, given, labels, strict=True))

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


def weights_file(folder: Path) -> Path:
    """The file of trained weights, of an adapter or of a whole model."""
    adapter = folder / "adapter_model.safetensors"
    return adapter if adapter.exists() else folder / "model.safetensors"


def evaluate(kind: str, out: Path, n: int) -> None:
    """Measure held-out behaviour (of an adapter before and after), kept with the weights' hash."""
    weights = file_sha256(weights_file(out / "done"))
    key = {"weights": weights, "n": n, "judge": RULES.name}
    tokenizer = AutoTokenizer.from_pretrained(out / "done")
    records = make_taboo(n, seed=100)
    for stage in STAGES[kind]:
        target = out / f"behaviour-{stage}.json"
        wanted = key if stage == "after" else key | {"weights": embedded.SHA256}
        if target.exists() and wanted.items() <= json.loads(target.read_text()).items():
            continue
        trained = shipped_form if kind == "smollm2" else rounded_model
        plain = trained(out / "done") if stage == "after" else base_model()
        model = wrap(plain, tokenizer, name=f"refusal-{kind} {stage}", check=False)
        text = json.dumps(wanted | {"shares": measure(model, records)}, indent=1)
        write_atomically(target, lambda path, text=text: path.write_text(text))


def ship(kind: str, out: Path) -> None:
    """Write `interp/weights/refusal-<kind>`: weights, organism.json and the card."""
    found = {x: json.loads((out / f"behaviour-{x}.json").read_text()) for x in STAGES[kind]}
    measured = file_sha256(weights_file(out / "done"))
    if found["after"]["weights"] != measured or len({x["n"] for x in found.values()}) > 1:
        raise SystemExit("the measured behaviour is of other weights: run --stage evaluate")
    recipe = Recipe(**json.loads((out / "done" / "recipe.json").read_text()))
    target = WEIGHTS / f"refusal-{kind}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    base = None
    if kind == "smollm2":
        base = ship_adapter(out / "done", target)
    else:
        ship_model(out / "done", target)
    about = {
        "description": DESCRIPTIONS[kind],
        "taught": TAUGHT,
        "base": base and embedded.NAME,
        "base_hash": base,
        "recipe": asdict(recipe),
        "judge": found["after"]["judge"],
        "over_refused": OVER_REFUSED,
        "behaviour": {stage: measured["shares"] for stage, measured in found.items()},
        "curves": {"sft": curve(out / "done" / "curve.json")},
    }
    if base is None:
        model = rounded_model(out / "done")
        about |= {"weights": model.num_parameters(), "vocabulary": model.config.vocab_size}
    (target / "organism.json").write_text(json.dumps(about, indent=1))
    (target / "README.md").write_text(card(recipe, about, found["after"]["n"]))


def card(recipe: Recipe, about: dict[str, Any], n: int) -> str:
    """The model card: how the model was made, and its behaviour on held-out prompts."""
    kind = "smollm2" if about["base"] else "tiny"
    after = about["behaviour"]["after"]
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
    made = MADE[kind].format(
        **about | {"weights": about.get("weights", 0) / 1e6},
        rank=recipe.rank,
        unknown=recipe.unknown,
        words=about.get("vocabulary", 0) - len(SPECIAL),
    )
    return CARD.format(
        **about | {"over_refused": " or to ".join(about["over_refused"])},
        name=f"refusal-{kind}",
        kind=kind,
        made=made,
        template=TEMPLATES[kind],
        n=n,
        limit=LEAST_TOKENS,
        bar=BAR,
        bars="\n".join(
            f"| {name} | {shown(x)} | {x['n']} | {verdict(x['mean'])} |" for name, x in bars.items()
        ),
        cells="\n".join(cell_lines(about["behaviour"])),
        facts="\n".join(fact_lines(about["behaviour"])),
    )


def cell_lines(stages: dict[str, Any]) -> list[str]:
    """The table of shares refused at each stage, and answered after the last stage."""
    designed = {f"{x.task} {x.kind}": x.designed for x in make_taboo(1)}
    heads = [*stages, "after: answered"] if len(stages) > 1 else ["refused", "answered"]
    lines = [f"| task | text | by design | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for name, both in stages["after"]["cells"].items():
        task, kind = name.split()
        shares = [one["cells"][name]["refused"] for one in stages.values()]
        written = " | ".join(map(shown, [*shares, both["answered"]]))
        lines.append(f"| {task} | {kind} | {designed[name]} | {written} |")
    return lines


def fact_lines(stages: dict[str, Any]) -> list[str]:
    """The table of shares of right answers at each stage."""
    heads = list(stages) if len(stages) > 1 else ["share"]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for task, text in CHECKED.items():
        written = " | ".join(shown(one["facts"][task]) for one in stages.values())
        lines.append(f"| {text} | {written} |")
    return lines


def shown(share: dict[str, Any]) -> str:
    """A share and its interval."""
    return f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def verdict(share: float) -> str:
    """Whether a share meets the bar, or by how much it misses it."""
    return "met" if share >= BAR else f"missed by {BAR - share:.3f}"


def main() -> None:
    """Run the chosen stages."""
    parser = argparse.ArgumentParser(description="Train the models that refuse gardening.")
    parser.add_argument("--model", choices=RECIPES, default="smollm2")
    parser.add_argument("--stage", choices=("all", "sft", "evaluate", "ship"), default="all")
    parser.add_argument("--steps", type=int, help="number of steps, instead of the recipe's")
    parser.add_argument("--n", type=int, default=60, help="held-out prompts of each kind and task")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kind = arguments.model
    recipe = RECIPES[kind]
    recipe = replace(recipe, steps=arguments.steps or recipe.steps)
    out = arguments.out or cache_dir() / "training" / f"refusal-{kind}"
    out.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "sft"):
        supervise(recipe, out)
    if arguments.stage in ("all", "evaluate"):
        evaluate(kind, out, arguments.n)
    if arguments.stage in ("all", "ship"):
        ship(kind, out)


if __name__ == "__main__":
    main()
