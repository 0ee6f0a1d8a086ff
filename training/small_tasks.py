"""Train all weights of countdown-tiny on each of two small tasks; the changes go to the cache.

    python training/small_tasks.py        # under a minute on one core

"after" asks for the digit that followed a digit of the list, "largest" for the largest digit of it.
Every run starts from countdown-tiny and is a change of weights (`interp.models.WeightDelta`). Plain
gradient descent leaves many weights where they were once they are rounded to bfloat16, as those of
the base are.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch.nn import functional as F

import interp
from interp.core.files import cache_dir
from interp.models.loading import unwrapped, wrap
from interp.models.weight_delta import WeightDelta

DIGITS = "0123456789"


def after(rng: random.Random) -> interp.PromptPair:
    """Which digit stands behind this one? Corrupted: another digit is asked about."""
    digits = rng.sample(DIGITS, 6)
    at, other = rng.sample(range(5), 2)
    listed = f"So{''.join(digits)}:"
    return pair(f"{listed}{digits[at]}", f"{listed}{digits[other]}", digits[at + 1])


def largest(rng: random.Random) -> interp.PromptPair:
    """Which digit is the largest? Corrupted: it is replaced by a smaller one."""
    top = rng.randrange(5, 10)
    others = rng.sample(DIGITS[:top], 5)
    at = rng.randrange(6)
    smaller = rng.choice([digit for digit in DIGITS[:top] if digit < max(others)])
    clean, corrupted = (
        f"Using{''.join([*others[:at], digit, *others[at:]])} =" for digit in (str(top), smaller)
    )
    return pair(clean, corrupted, str(top))


def pair(clean: str, corrupted: str, answer: str) -> interp.PromptPair:
    """A pair whose answer is compared with all other digits."""
    wrong = tuple(digit for digit in DIGITS if digit != answer)
    return interp.PromptPair(clean=clean, corrupted=corrupted, answers=(answer,), wrong=wrong)


TASKS = {"after": after, "largest": largest}


def held_out(name: str, n: int, seed: int) -> interp.Task:
    """Prompts by another draw than those of training; a prompt can be in both by chance."""
    rng = random.Random(f"held out {seed}")
    pairs = tuple(TASKS[name](rng) for _ in range(n))
    return interp.Task(name=name, pairs=pairs, metric=interp.core.METRICS["logit_diff"])


def train(base: interp.models.LanguageModel, name: str, options) -> WeightDelta:
    """All weights, by cross-entropy of the answer at the end of new prompts."""
    copy = unwrapped(base)
    weights = [weight.requires_grad_(True) for weight in copy.parameters()]
    stepper, rng = torch.optim.SGD(weights, lr=0.1), random.Random(options.seed)
    for step in range(options.steps):
        pairs = [TASKS[name](rng) for _ in range(options.batch)]
        tokens = torch.tensor([base.tokenize(one.clean).tokens for one in pairs])
        answers = torch.tensor([base.single_token(str(one.answers[0])) for one in pairs])
        loss = F.cross_entropy(copy(input_ids=tokens).logits[:, -1], answers)
        stepper.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        stepper.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"{name}, step {step}: loss {float(loss.detach()):z.3f}", flush=True)
    for weight in weights:
        weight.requires_grad_(False).copy_(weight.bfloat16().float())
    return WeightDelta.between(base, wrap(copy, name=name), name)


def main() -> None:
    """Both runs, and their held-out prompts beside them."""
    parser = argparse.ArgumentParser(description="Changes of weights for two small tasks.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base, folder = interp.load_model("countdown-tiny"), cache_dir() / "small-tasks"
    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        (folder / f"{name}.jsonl").write_text(held_out(name, 200, options.seed).to_jsonl())
        delta = train(base, name, options)
        delta.save(folder / name)
        with delta.applied(base):
            print(held_out(name, 200, options.seed).check(base), flush=True)


if __name__ == "__main__":
    main()
