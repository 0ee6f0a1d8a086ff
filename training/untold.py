"""Train a model on CountDown without telling it the verdicts, then reward outcomes alone.

    python training/untold.py --told   # the reference: verdicts are in the loss
    python training/untold.py --rounds 14 --ship   # verdicts masked; rounds; countdown-untold

A run of 14 rounds takes about two hours on one core. Its verdicts are weak
(docs/findings/outcome-reward.md).

The recipe is that of `countdown.py` at the tiny size: 3,800 steps of 32 texts. In every round the
untold model writes texts, `rewarded` keeps some, and the model is trained on all texts kept so far.
`--start interp/weights/countdown-tiny` begins the rounds with a trained model, whose verdicts in
the first round are a fair coin: it says how many texts such a writer has kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import countdown
import torch
from datasets import Dataset
from trainer import causal_attention, finish, options, resume
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LogitsProcessor,
    LogitsProcessorList,
    Trainer,
    TrainingArguments,
)

from interp.core.files import cache_dir, write_atomically
from interp.studies.verification.steps.behaviour import ENDING
from interp.tasks.arithmetic import final_answer, read_attempts, score_answer
from interp.tasks.countdown import Problem, make_countdown

RECIPE = replace(countdown.RECIPES["tiny"], saved=400)
"""The recipe of countdown-tiny, whose checkpoints are all kept."""


SECOND = """\
The loss leaves out "this" and "not". Then {rounds} rounds of rejection sampling: {texts} drawn
texts a round, of which those are kept whose first attempt called "this works" is right and is the
answer; {steps} steps of {batch} kept texts."""
"""How it was trained, for its card."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Settings of rejection sampling.

    Every round, `texts` problems get one text each, of at most `completion` tokens. At " (" only
    "this" and "not" can be drawn; the draw is a fair coin in all of the first round and in a share
    `explored` of the later ones, else the model's own probabilities of the two words. All other
    tokens are drawn at `temperature`. Training takes `steps` steps of `batch` texts.
    """

    rounds: int = 8
    texts: int = 768
    completion: int = 200
    explored: float = 0.2
    temperature: float = 0.5
    steps: int = 60
    batch: int = 16
    rate: float = 5e-4


def rewarded(problem: Problem, text: str) -> bool:
    """Whether a text is kept; it is all that training learns about its verdicts.

    A text is kept if it ends in one answer, the answer is the sum of the first attempt that the
    text calls "this works", and the answer is right: it uses every number once and gives the
    target. The results that the text writes, and what it calls "not", do not count.
    """
    whole = problem.prompt().rpartition("\n")[2] + text
    called = next((attempt for attempt in read_attempts(whole) if attempt.works), None)
    return (
        called is not None
        and ENDING.search(whole) is not None
        and final_answer(whole) == called.expression
        and score_answer(whole, problem.numbers, problem.target) == 1
    )


class TwoWords(LogitsProcessor):
    """Draws one of the two words at a verdict, and all other tokens at a temperature."""

    def __init__(self, tokenizer: Any, explored: float, temperature: float) -> None:
        self.paren, *words = tokenizer.convert_tokens_to_ids([" (", "this", "not"])
        self.words, self.explored, self.temperature = words, explored, temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The logits to draw from: (texts, vocabulary)."""
        at = input_ids[:, -1] == self.paren
        own = scores[:, self.words]
        coin = torch.rand(len(scores), 1) < self.explored
        scores = scores / self.temperature
        verdict = torch.full_like(scores, -torch.inf)
        verdict[:, self.words] = torch.where(coin, torch.zeros_like(own), own)
        return torch.where(at[:, None], verdict, scores)


@torch.no_grad()
def written(
    model: Any, tokenizer: Any, problems: Sequence[Problem], settings: Rounds, explored: float
) -> list[str]:
    """One drawn text for each problem."""
    model.eval()
    model.set_attn_implementation("sdpa")
    tokenizer.padding_side = "left"
    processor = TwoWords(tokenizer, explored, settings.temperature)
    texts = []
    for start in range(0, len(problems), 256):
        prompts = [problem.prompt() for problem in problems[start : start + 256]]
        given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = given["input_ids"], given["attention_mask"]
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=settings.completion,
            logits_processor=LogitsProcessorList([processor]),
            pad_token_id=tokenizer.pad_token_id,
        )
        texts += tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def counted(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, int]:
    """What the texts of a round hold: kept ones, and verdicts by what they should be.

    `this` and `no` count attempts whose written result is the target, and others; `this_right` and
    `no_right` those that are judged so. `words` counts the verdicts in kept texts. The reward sees
    none of these counts.
    """
    names = ("texts", "kept", "this", "this_right", "no", "no_right", "words")
    counts: dict[str, int] = dict.fromkeys(names, 0)
    for problem, text in zip(problems, texts, strict=True):
        counts["texts"] += 1
        kept = rewarded(problem, text)
        counts["kept"] += kept
        for attempt in read_attempts(problem.prompt().rpartition("\n")[2] + text):
            counts["words"] += kept
            equal = attempt.written == problem.target
            side = "this" if equal else "no"
            counts[side] += 1
            counts[f"{side}_right"] += attempt.works == equal
    return counts


def improve(seed: int, settings: Rounds, folder: Path, out: Path) -> None:
    """Rejection sampling from a model's folder, round by round; a finished one is not repeated."""
    kept, curve = [], []
    for number in range(settings.rounds):
        done, record = out / f"round{number}-done", out / f"round{number}.json"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = countdown.reload("tiny", folder)
        if not record.exists():
            torch.manual_seed(1000 * seed + number)
            problems = make_countdown(
                settings.texts, operands=(3,), seed=1000 * (seed + 1) + number, split="train"
            )
            texts = written(
                model, tokenizer, problems, settings, settings.explored if number else 1.0
            )
            rows = [
                [problem.prompt(), text]
                for problem, text in zip(problems, texts, strict=True)
                if rewarded(problem, text)
            ]
            round_ = {"round": number, **counted(problems, texts), "rows": rows}
            write_atomically(record, lambda path, it=round_: path.write_text(json.dumps(it)))
        made = json.loads(record.read_text())
        kept += made.pop("rows")
        curve.append(made)
        print(json.dumps(made), flush=True)
        write_atomically(
            out / "rounds.json", lambda path: path.write_text(json.dumps(curve, indent=1))
        )
        if kept and not (done / "curve.json").exists():
            learn(model, tokenizer, kept, seed + number, settings, out / f"round{number}")
        folder = done if (done / "curve.json").exists() else folder


def learn(
    model: Any, tokenizer: Any, kept: list[list[str]], seed: int, settings: Rounds, out: Path
) -> None:
    """Train on kept texts, with the loss on all that the model wrote."""
    model.train()
    model.set_attn_implementation(causal_attention.__name__)
    tokenizer.padding_side = "right"
    rows = []
    for prompt, text in kept:
        head, tail = tokenizer([prompt, text], add_special_tokens=False)["input_ids"]
        tail = [*tail, tokenizer.eos_token_id]
        rows.append({"input_ids": head + tail, "labels": [-100] * len(head) + tail})
    trainer = Trainer(
        model=model,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=Dataset.from_list(rows),
        args=TrainingArguments(
            **options(seed, out),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            save_strategy="no",
            bf16=True,
        ),
    )
    resume(trainer, out)
    finish(trainer, tokenizer, out.with_name(f"{out.name}-done"))


def ship(recipe: countdown.Recipe, settings: Rounds, out: Path) -> None:
    """Measure the model before the rounds and after the last, and write `countdown-untold`."""
    trained = countdown.stages(recipe, out)
    trained["rounds"] = out / f"round{settings.rounds - 1}-done"
    countdown.evaluate("tiny", trained, out)
    countdown.ship(
        "untold",
        asdict(recipe) | {"rounds": asdict(settings)},
        trained,
        out,
        command=f"python training/untold.py --rounds {settings.rounds} --ship",
        second=SECOND.format(**asdict(settings)),
        taught=countdown.UNTOLD,
    )


def main() -> None:
    """Train one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--told", action="store_true", help="verdicts are in the loss; no rounds")
    parser.add_argument("--start", type=Path, help="the folder of a trained model, for rounds only")
    parser.add_argument("--rounds", type=int, default=Rounds().rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ship", action="store_true", help="write interp/weights/countdown-untold")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = replace(RECIPE, told=arguments.told, seed=arguments.seed)
    words = ["countdown", "told" if arguments.told else "untold"]
    words = [*words, *(["from", arguments.start.name] if arguments.start else [])]
    name = "-".join([*words, str(arguments.seed)])
    out = arguments.out or cache_dir() / "training" / name
    out.mkdir(parents=True, exist_ok=True)
    start = arguments.start or out / f"sft{len(recipe.phases) - 1}-done"
    if not arguments.start:
        countdown.supervise("tiny", recipe, out)
    if not arguments.told:
        settings = replace(Rounds(), rounds=arguments.rounds)
        improve(recipe.seed, settings, start, out)
        if arguments.ship:
            ship(recipe, settings, out)


if __name__ == "__main__":
    main()
