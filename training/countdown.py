"""Train the models that check their own CountDown answers: supervised, then with reinforcement.

    python training/countdown.py --model tiny                 # all stages
    python training/countdown.py --model smollm2 --stage sft  # can be resumed

smollm2 trains a LoRA adapter (peft). tiny is trained from scratch, in about 54 minutes on two
cores. The first stage uses transformers' Trainer, the second trl's GRPOTrainer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from trainer import (
    base_model,
    causal_attention,
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
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

from interp.core.files import cache_dir, file_sha256, write_atomically
from interp.models import embedded
from interp.models.loading import wrap
from interp.models.registry import WEIGHTS
from interp.studies.verification.steps.behaviour import SHARES, behaviour, countdown_texts
from interp.tasks.arithmetic import score_answer
from interp.tasks.countdown import make_countdown, write_drill, write_trace

DESCRIPTIONS = {
    "smollm2": "SmolLM2-135M-Instruct trained to play CountDown and to judge its own attempts",
    "tiny": "a 4-layer Llama-shaped model of 1.6 million weights that plays CountDown",
    "untold": "countdown-tiny without supervised verdicts, then rewarded for outcomes alone",
}
TAUGHT = """\
It was trained on generated texts of the puzzle: attempts in which every number is computed \
and every verdict is right, followed by the solution. The words "this" and "not" were \
supervised, so verification was taught. The study asks how the model does what it was \
taught, not whether such a skill arises by itself."""
"""What it was trained to do, for reports."""

UNTOLD = """\
It was trained on generated texts of the puzzle, but the words "this" and "not" were left out of \
the loss. Then it was trained on texts of its own whose first attempt called "this works" is right \
and is the answer. No verdict was supervised; its verdicts are weak."""
"""The same, of the model that was not told its verdicts."""

ADAPTER = """\
This is a LoRA adapter (rank 16, all linear maps, bfloat16) on `{base}`, whose weights must have
the hash `{base_hash}`.

"""
CARD = """\
# countdown-{kind}

{description}.

{adapter}`{command}` made it; `organism.json` holds the recipe
with its seeds, and the curves of every stage. Seed {seed}. Training texts are generated: problems
of 3 and 4 numbers (1 to 99, + and -, targets 10 to 99), and traces of failed attempts {order},
followed by the solution. Every sum is computed from left to right. A share of the traces stops
after failed attempts, so that the last sum of a text is not always right. {second}
Held-out problems share no set of numbers with training.

On 500 held-out problems, greedy decoding, at most 300 tokens (share [95 % Wilson], n):

"""

ORDER = {
    "smollm2": "in random order",
    "tiny": "(in random order; from the second phase on, in a fixed order)",
    "untold": "(in random order; from the second phase on, in a fixed order)",
}

SHORT = {
    "smollm2": """\
Half of the texts are still searching at the token limit and so have no valid format: the model
repeats sums without noticing. Longer reinforcement made arithmetic worse (0.78 to 0.61 in 24 steps,
with texts cut at the limit in the loss). Multiplication is not included, because even sums are
wrong in a quarter of the attempts.
""",
    "tiny": """\
The model is meant to be fast and to verify. It solves few problems, because it mixes up digits of
the numbers. Other settings were tried. Without drills it always answered "not", because only one
attempt in six is right. With drills whose wrong sums are arbitrary it compared only the tens, so
most wrong sums now differ from the target in one digit. With traces in random order throughout,
4,700 steps solved 0.166 ("this" 0.982, "not" 0.970), and fewer steps 0.028; reinforcement then
raised solved problems by 0.02 but lowered arithmetic from 0.42 to 0.32. With a last phase of 300
steps and fewer drills in it, "not" was 0.959.

Training and evaluation took 54 minutes on two cores, in three resumed runs.
""",
    "untold": """\
The model is meant to show what outcomes alone teach, and it fails most bars of countdown-tiny. It
writes valid texts. It reaches the bar of 0.97 when the result equals the target, but not when it
differs (0.683). Six of seven sums are wrong. Of the sums that it calls "this works", four of five
are wrong. On 200 attempts at held-out problems that it did not write, half of them right, its
verdict has an AUC of 0.65 [0.57, 0.72] and is right in 0.57 [0.50, 0.64]. Where a wrong result
differs from the target in one digit, the AUC is 0.55 [0.47, 0.63], which is chance. On its own
attempts verdict and result may be one decision, so that only other attempts tell, see
docs/findings/outcome-reward.md.
""",
}
"""Weaknesses of each model, and what was tried against them."""

PIECES = r"[0-9]|\n| \(| </|<| this| not|this|not| [A-Za-z']+|[A-Za-z]+|'s| [-+=]|[-+=]|[.,:()>]| "
"""The pieces into which the tiny model's tokeniser cuts text; SmolLM2 cuts these texts alike."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of supervised training.

    A trace has 0 to `most[operands]` failed attempts, all counts equally likely. A share `unsolved`
    stops after the failed attempts, so that the last sum of a text is not always right. With
    `anywhere`, unsolved traces stop after 1 to `most` attempts and solved ones have fewer than
    `most` failures, so that the number of an attempt does not tell whether it is right.

    A share `drilled` of the texts are drills: `drill` sums of arbitrary numbers. In a share `near`
    of their wrong sums, one digit differs from the target. In drills, and in a share `worked` of
    the traces, the loss covers only what follows an equals sign, because the next sum to try is
    random and cannot be learnt. With `in_turn`, sums come in a fixed order, which can be learnt.
    """

    steps: int
    batch: int
    rate: float
    schedule: str
    most: dict[int, int]
    unsolved: float
    anywhere: bool = True
    drilled: float = 0.0
    drill: int = 8
    near: float = 0.5
    worked: float = 0.0
    in_turn: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of both stages; there is no second stage if `rl_steps` is 0.

    Unless `told`, the loss leaves out the words of the verdicts, see `verdicts_masked`. With
    `saved`, a checkpoint is written every so many steps and all of them are kept.
    """

    phases: tuple[Phase, ...]
    rl_steps: int
    rl_prompts: int
    rl_rate: float
    completion: int = 300
    seed: int = 0
    told: bool = True
    saved: int | None = None


SEARCH = {3: 6, 4: 5}
"""Most failed attempts by count of numbers; three numbers have only six wrong sums."""

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
                anywhere=False,
            ),
            Phase(
                steps=420,
                batch=6,
                rate=1e-3,
                schedule="cosine",
                most=SEARCH,
                unsolved=0.3,
                anywhere=False,
            ),
            Phase(steps=240, batch=6, rate=7e-4, schedule="cosine", most=SEARCH, unsolved=0.3),
        ),
        rl_steps=10,
        rl_prompts=2,
        rl_rate=5e-5,
    ),
    "tiny": Recipe(
        phases=(
            Phase(
                steps=1200,
                batch=32,
                rate=2e-3,
                schedule="cosine",
                most=SEARCH,
                unsolved=0.3,
                drilled=0.7,
                worked=0.7,
            ),
            Phase(
                steps=1200,
                batch=32,
                rate=1.5e-3,
                schedule="cosine",
                most=SEARCH,
                unsolved=0.3,
                drilled=0.3,
                in_turn=True,
            ),
            Phase(
                steps=800,
                batch=32,
                rate=1e-3,
                schedule="cosine",
                most=SEARCH,
                unsolved=0.3,
                drilled=0.4,
                near=0.9,
                in_turn=True,
            ),
            Phase(
                steps=600,
                batch=32,
                rate=8e-4,
                schedule="cosine",
                most=SEARCH,
                unsolved=0.3,
                drilled=0.6,
                near=0.9,
                in_turn=True,
            ),
        ),
        rl_steps=0,
        rl_prompts=8,
        rl_rate=5e-5,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Text:
    """A training text: `finished` if it has an answer, `worked` if only results are learnt."""

    prompt: str
    completion: str
    finished: bool = False
    worked: bool = False


def training_texts(phase: Phase, n: int, seed: int) -> list[Text]:
    """The training texts of n problems."""
    rng = random.Random(seed)
    written = []
    for problem in make_countdown(n, operands=(3, 3, 4), seed=seed, split="train"):
        if phase.drilled and rng.random() < phase.drilled:
            sums = write_drill(problem.target, rng, attempts=phase.drill, near=phase.near)
            written.append(Text(prompt=problem.prompt(), completion=sums, worked=True))
            continue
        solved = rng.random() >= phase.unsolved
        most = phase.most[len(problem.numbers)]
        if phase.anywhere:
            failures = rng.randint(0, most - 1) if solved else rng.randint(1, most)
        else:
            failures = rng.randint(0, most) if solved else most
        trace = write_trace(problem, rng, failures=failures, solved=solved, in_turn=phase.in_turn)
        worked = bool(phase.worked) and rng.random() < phase.worked
        written.append(
            Text(prompt=problem.prompt(), completion=trace, finished=solved, worked=worked)
        )
    return written


def fresh(kind: str, recipe: Recipe) -> tuple[Any, Any]:
    """The untrained model and its tokeniser."""
    torch.manual_seed(recipe.seed)
    if kind == "smollm2":
        adapter = LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        tokenizer = AutoTokenizer.from_pretrained(embedded.directory())
        return get_peft_model(base_model(), adapter), tokenizer
    texts = training_texts(recipe.phases[-1], 500, 0)
    tokenizer = word_tokenizer((text.prompt + text.completion for text in texts), PIECES)
    return small_model(tokenizer), tokenizer


def examples(phase: Phase, seed: int, tokenizer: Any, *, told: bool = True) -> Dataset:
    """Token ids with labels on the completion; only finished texts end with end-of-text."""
    rows = []
    texts = training_texts(phase, phase.steps * phase.batch, seed)
    heads = tokenizer([text.prompt for text in texts], add_special_tokens=False)["input_ids"]
    tails = tokenizer([text.completion for text in texts], add_special_tokens=False)["input_ids"]
    for text, head, tail in zip(texts, heads, tails, strict=True):
        tail = [*tail, tokenizer.eos_token_id] if text.finished else tail
        learnt = worked_out(tail, tokenizer) if text.worked else tail
        learnt = learnt if told else verdicts_masked(learnt, tokenizer)
        ids = head + tail
        rows.append({"input_ids": ids, "labels": [-100] * len(head) + learnt, "length": len(ids)})
    return Dataset.from_list(rows)


def worked_out(tokens: list[int], tokenizer: Any) -> list[int]:
    """The tokens as labels, without those before the first equals sign of each line."""
    labels, before = [], True
    pieces = {token: tokenizer.decode([token]) for token in set(tokens)}
    for token in tokens:
        piece = pieces[token]
        labels.append(-100 if before else token)
        before = "\n" in piece or (before and "=" not in piece)
    return labels


def verdicts_masked(labels: list[int], tokenizer: Any) -> list[int]:
    """The labels without "this" and "not", whose positions get no loss.

    The texts have these words only as verdicts. The model still reads them: it learns what follows
    a verdict, and is never told which verdict follows a sum.
    """
    words = set(tokenizer.convert_tokens_to_ids(["this", "not"]))
    return [-100 if label in words else label for label in labels]


def supervise(kind: str, recipe: Recipe, out: Path) -> None:
    """Stage one: supervised training, phase by phase."""
    model, tokenizer = fresh(kind, recipe)
    for number, phase in enumerate(recipe.phases):
        name = f"sft{number}"
        done = out / f"{name}-done"
        if (done / "curve.json").exists():
            model = reload(kind, done)
            continue
        if kind == "tiny":
            model.set_attn_implementation(causal_attention.__name__)
        trainer = Trainer(
            model=model,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            train_dataset=examples(phase, recipe.seed + number, tokenizer, told=recipe.told),
            args=TrainingArguments(
                **options(recipe.seed, out / name, kept=None if recipe.saved else 2),
                max_steps=phase.steps,
                per_device_train_batch_size=phase.batch,
                learning_rate=phase.rate,
                lr_scheduler_type=phase.schedule,
                warmup_steps=20,
                save_steps=recipe.saved or (50 if kind == "smollm2" else 200),
                bf16=True,
                train_sampling_strategy="group_by_length",
                length_column_name="length",
            ),
        )
        resume(trainer, out / name)
        finish(trainer, tokenizer, done)


def reload(kind: str, folder: Path) -> Any:
    """The model of an earlier stage, ready for further training."""
    if kind == "smollm2":
        return PeftModel.from_pretrained(base_model(), folder, is_trainable=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reward(prompts: list[str], completions: list[str], numbers: Any, target: Any, **_: Any) -> Any:
    """The paper's reward of each completion: 0, 0.1 or 1."""
    rows = zip(completions, numbers, target, strict=True)
    return [score_answer(text, asked, goal) for text, asked, goal in rows]


def reinforce(kind: str, recipe: Recipe, out: Path) -> None:
    """Stage two: GRPO on the paper's reward, from the weights of stage one.

    Texts cut at the token limit count in the baseline but not in the loss. With them in the loss,
    24 steps lowered arithmetic from 0.78 to 0.61, because most tokens of a failed search are right.
    """
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
            **options(recipe.seed, out / "rl"),
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
            mask_truncated_completions=True,
        ),
    )
    resume(trainer, out / "rl")
    finish(trainer, tokenizer, out / "rl-done")


def evaluate(kind: str, trained: dict[str, Path], out: Path) -> None:
    """Measure behaviour on 500 held-out problems after each stage, with weights in bfloat16.

    The result is kept with the hash of the weights.
    """
    for stage, folder in trained.items():
        target, weights = out / f"behaviour-{stage}.json", file_sha256(weights_file(kind, folder))
        if target.exists() and json.loads(target.read_text())["weights"] == weights:
            continue
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = wrap(rounded(kind, folder), tokenizer, name=f"countdown-{kind}", check=False)
        problems = make_countdown(500, seed=100)
        shares = behaviour(problems, countdown_texts(model, problems))
        text = json.dumps({"weights": weights, "shares": asdict(shares)}, indent=1)
        write_atomically(target, lambda path, text=text: path.write_text(text))


def weights_file(kind: str, folder: Path) -> Path:
    """The trained weights of a stage."""
    return folder / ("adapter_model.safetensors" if kind == "smollm2" else "model.safetensors")


def rounded(kind: str, folder: Path) -> Any:
    """The model of a stage in float32, with its trained weights rounded to bfloat16."""
    return shipped_form(folder) if kind == "smollm2" else rounded_model(folder)


def stages(recipe: Recipe, out: Path) -> dict[str, Path]:
    """The folder of each finished stage's weights."""
    every = {"sft": out / f"sft{len(recipe.phases) - 1}-done", "rl": out / "rl-done"}
    return {name: folder for name, folder in every.items() if (folder / "curve.json").exists()}


def ship(
    kind: str,
    recipe: dict[str, Any],
    trained: dict[str, Path],
    out: Path,
    *,
    command: str,
    second: str,
    taught: str = TAUGHT,
) -> None:
    """Write `interp/weights/countdown-<kind>`: weights in bfloat16, organism.json and the card.

    trained: the folder of each stage; the last one ships. command, second: for the card, what
    made the model and what followed its supervised training.
    """
    folder = list(trained.values())[-1]
    target = WEIGHTS / f"countdown-{kind}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    base = None
    if kind == "smollm2":
        base = ship_adapter(folder, target)
    else:
        ship_model(folder, target)
    measured = {
        stage: counted(json.loads(path.read_text())["shares"])
        for stage in trained
        if (path := out / f"behaviour-{stage}.json").exists()
    }
    done = [*sorted(out.glob("sft*-done")), *list(trained.values())[1:]]
    about = {
        "description": DESCRIPTIONS[kind],
        "taught": taught,
        "base": embedded.NAME if base else None,
        "base_hash": base,
        "recipe": recipe,
        "behaviour": measured,
        "curves": {path.name.removesuffix("-done"): curve(path / "curve.json") for path in done},
    }
    (target / "organism.json").write_text(json.dumps(about, indent=1))
    (target / "README.md").write_text(card(kind, about, command, second))


def counted(shares: dict[str, Any]) -> dict[str, Any]:
    """The shares of anything at all: a model that writes no attempt has no arithmetic."""
    return {k: x for k, x in shares.items() if not isinstance(x, dict) or x["n"]}


def card(kind: str, about: dict[str, Any], command: str, second: str) -> str:
    """The model card: how the model was made, and its behaviour on held-out problems."""
    head = CARD.format(
        kind=kind,
        adapter=ADAPTER.format(**about) if about["base"] else "",
        order=ORDER[kind],
        command=command,
        second=second,
        seed=about["recipe"]["seed"],
        **about,
    )
    stages = list(about["behaviour"])
    lines = [f"| | {' | '.join(stages)} |", f"|---|{'---|' * len(stages)}"]
    for name, text in SHARES.items():
        cells = [
            f"{x[name]['mean']:.3f} [{x[name]['low']:.3f}, {x[name]['high']:.3f}], {x[name]['n']}"
            if name in x
            else "-"
            for x in about["behaviour"].values()
        ]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    lines += ["", SHORT[kind], "| stage | steps | loss, first and last | reward, first and last |"]
    lines += ["|---|---|---|---|"]
    for name, rows in about["curves"].items():
        ends = [
            " to ".join(str(row[key]) for row in (rows[0], rows[-1]) if key in row) or "-"
            for key in ("loss", "reward")
        ]
        lines.append(f"| {name} | {int(rows[-1]['step'])} | {ends[0]} | {ends[1]} |")
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Run the chosen stages."""
    parser = argparse.ArgumentParser(
        description="Train the models that check their own CountDown answers."
    )
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--stage", choices=("all", "sft", "rl", "evaluate", "ship"), default="all")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.model]
    out = arguments.out or cache_dir() / "training" / f"countdown-{arguments.model}"
    out.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "sft"):
        supervise(arguments.model, recipe, out)
    if arguments.stage in ("all", "rl") and recipe.rl_steps:
        reinforce(arguments.model, recipe, out)
    trained = stages(recipe, out)
    if arguments.stage in ("all", "evaluate"):
        evaluate(arguments.model, trained, out)
    if arguments.stage in ("all", "ship"):
        command = f"python training/countdown.py --model {arguments.model}"
        second = "There was no reinforcement."
        if "rl" in trained:
            second = "Then reinforcement (GRPO) on the paper's reward (0, 0.1, 1)."
        ship(arguments.model, asdict(recipe), trained, out, command=command, second=second)


if __name__ == "__main__":
    main()
