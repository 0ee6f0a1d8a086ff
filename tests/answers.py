"""Answers of several tokens: random tasks, and log-probabilities from plain forward passes."""

import random
from dataclasses import replace

import torch

from tests.families import random_task


def several(task=None, metric="log_prob_diff", seed=3):
    """A task whose answers have one to three tokens, one of them shared by right and wrong."""
    rng = random.Random(seed)

    def string(least, low):
        return tuple(rng.randrange(low, low + 20) for _ in range(rng.randint(least, 3)))

    pairs = []
    for pair in (task or random_task()).pairs:
        first = string(2, 3)
        other = (first[0], 80, 4)  # begins with the answer's first token
        pairs.append(replace(pair, answers=(first, string(1, 30)), wrong=(string(1, 55), other)))
    return replace(task or random_task(), pairs=tuple(pairs)).with_metric(metric)


def total(logits_of, prompt, string):
    """Summed log-probability of a string, from the logits at every token of prompt + string."""
    logs = logits_of((*prompt, *string)).double().log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + j, token]) for j, token in enumerate(string))


def string(answer):
    return answer if isinstance(answer, tuple) else (answer,)


def scored(logits_of, prompt, pair, *, per_token=False):
    """The difference of mean summed log-probabilities of right and wrong answers."""
    sides = []
    for answers in (pair.answers, pair.wrong):
        each = [(total(logits_of, prompt, string(a)), len(string(a))) for a in answers]
        sides.append(sum(t / (n if per_token else 1) for t, n in each) / len(each))
    return sides[0] - sides[1]


def plain_logits(hf):
    """Logits of a Hugging Face model at every token of a prompt, one pass for each."""

    def logits_of(tokens):
        with torch.no_grad():
            return hf(torch.tensor([tokens])).logits[0]

    return logits_of
