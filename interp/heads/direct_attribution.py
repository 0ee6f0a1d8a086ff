"""What heads write to the answer directly: direct logit attribution, and projections.

Direct attribution misses a head that acts through later heads. `interp.heads.scan` finds heads that
are necessary, and `interp.heads.interchange` finds heads that trigger the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.metrics import Targets
from interp.core.nulls import flip_maxima
from interp.core.prompts import Task
from interp.core.schema import Brief
from interp.core.statistics import bootstrap_weights
from interp.heads.switching import Sides, both_sides, head_scores
from interp.models.language_model import LanguageModel
from interp.results.direction import Direction
from interp.results.scores import Scores
from interp.runs.capture import run_with_cache

ATTRIBUTION, PROJECTION = "direct attribution", "direction projection"


def head_logit_attribution(model: LanguageModel, task: Task) -> Scores:
    """Direct logit attribution: what each head adds to the logit difference at the last token.

        DLA(h) = u . N(z_h W_O),   u = mean W_U[answers] - mean W_U[wrong]

    with N the final norm linearised at the run's own residual, so that the terms of all heads, MLPs
    and the embedding add up to the logit difference. A post-norm after attention is linearised in
    the same way. Logits are those before a softcap. Effects are clean - corrupted: a positive
    effect supports the behaviour.

    Answers of several tokens: at every token t of an answer u is the gradient of its log
    probability, W_U[t] - sum over v of P(v) W_U[v], and a head's terms are summed over the tokens
    (divided by their number with metric log_prob_diff_per_token), answers minus wrong answers. For
    each token all terms add up to its logit above the mean logit under P. That is log P(t) + H(P),
    H the entropy, and not log P(t): the normaliser is not a sum over heads. At the first token,
    which all answers share, the entropies cancel.

    Args:
        model: a model whose weights are known.
        task: clean prompts show the behaviour, corrupted ones do not. `answers` are its first
            tokens (for example those of refusals), `wrong` the first tokens of other replies.

    Returns:
        Scores over (layer, head) as fractions of the difference in logit_diff of the two sides.

    Raises:
        InterpError: unknown weights, no wrong tokens, or sides that do not differ.

    Source: arXiv 2604.04385 (gregfrank/how-alignment-routes). Here effects are fractions of the gap
    with an interval over pairs, unlike there.
    """
    sides = both_sides(model, task, strings=True)
    if sides.targets.strings is not None:
        return _of_strings(model, task, sides)
    return _scores(model, task, sides, logit_reading(model, task, sides))


def direction_projection(model: LanguageModel, task: Task, direction: Direction) -> Scores:
    """What each head writes along a direction at the last token: (z_h W_O) . r, r of length one.

    Effects are clean - corrupted, as fractions of the difference in the stream's own projection at
    the direction's site; positive supports the behaviour. Heads of later layers are not scored.

    Raises:
        InterpError: a direction of another model or site, or sides that do not differ along it.
    """
    return _scores(model, task, both_sides(model, task), direction_reading(model, direction))


@dataclass(frozen=True, kw_only=True)
class HeadReading:
    """What is read of heads: of a stream (n, d), the vectors (n, d) that read its parts."""

    along: Callable[[Tensor], Tensor]
    layers: range
    method: str
    metric: tuple[str, str]


def logit_reading(model: LanguageModel, task: Task, sides: Sides) -> HeadReading:
    """The reading of `head_logit_attribution`."""
    decoder = model.require_decoder("direct logit attribution")
    if bool((sides.targets.wrong < 0).all(1).any()):
        raise InterpError(f"attribution on {task.name}", "no wrong tokens", "give some to each")
    rows = mean_rows(decoder.unembed, sides.targets.answers)
    rows = rows - mean_rows(decoder.unembed, sides.targets.wrong)
    return HeadReading(
        along=lambda whole: decoder.ln_final.reader(whole, rows),
        layers=range(model.n_layers),
        method=ATTRIBUTION,
        metric=("logit_diff", "logits"),
    )


def direction_reading(model: LanguageModel, direction: Direction) -> HeadReading:
    """The reading of `direction_projection`."""
    direction.require_model(model)
    if direction.site not in ("resid_pre", "resid_post"):
        raise InterpError(f"heads along {direction}", "no residual site", "read resid_pre or _post")
    last = direction.layer - (direction.site == "resid_pre")
    if last < 0:
        raise InterpError(f"heads along {direction}", "no head precedes it", "take a later layer")
    unit = direction.unit
    return HeadReading(
        along=unit.expand_as,
        layers=range(last + 1),
        method=PROJECTION,
        metric=(f"projection on {direction}", ""),
    )


def head_contrast(
    model: LanguageModel, sides: Sides, reading: HeadReading
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(n, layer, head) clean - corrupted, and the (n,) readings of the whole stream on both."""
    blocks = model.require_decoder("what heads write").blocks
    effects, ends = [], []
    for prompts in (sides.clean, sides.corrupted):
        seen = run_with_cache(
            model, prompts, sites=["z", "resid_post"], layers=reading.layers, positions="last"
        )
        whole = seen[reading.layers[-1], "resid_post"]
        along = reading.along(whole)
        with torch.no_grad():
            each = [blocks[k].head_values(seen[k, "z"], along) for k in reading.layers]
        effects.append(torch.stack(each, 1).numpy())
        ends.append((whole.double() * along).sum(-1).numpy())
    return effects[0] - effects[1], (ends[0], ends[1])


def _scores(model: LanguageModel, task: Task, sides: Sides, reading: HeadReading) -> Scores:
    effects, ends = head_contrast(model, sides, reading)
    return head_scores(
        model,
        task,
        effects,
        ends,
        method=reading.method,
        direction="noise",
        metric=reading.metric,
        layers=reading.layers,
        positions="the last token",
    )


def _of_strings(model: LanguageModel, task: Task, sides: Sides) -> Scores:
    """`head_logit_attribution` of answers of several tokens."""
    decoder = model.require_decoder("direct logit attribution")
    if bool((sides.targets.wrong < 0).all(1).any()):
        raise InterpError(f"attribution on {task.name}", "no wrong tokens", "give some to each")
    owner, prefixes, weights = _prefixes(sides.targets, task.metric.name.endswith("per_token"))
    rows = replace(
        sides,
        clean=[(*sides.clean[i], *prefix) for i, prefix in zip(owner, prefixes, strict=True)],
        corrupted=[
            (*sides.corrupted[i], *prefix) for i, prefix in zip(owner, prefixes, strict=True)
        ],
    )

    def along(whole: Tensor) -> Tensor:
        """(rows, d_model) reads each row's weighted logits above their mean under P."""
        device = decoder.unembed.device
        found = []
        for at, row in enumerate(whole.to(device)):
            logits = decoder.ln_final(row[None]) @ decoder.unembed.T
            if decoder.unembed_bias is not None:
                logits = logits + decoder.unembed_bias
            mean = logits.double().softmax(-1)[0] @ decoder.unembed.double()
            tokens = list(weights[at])
            weight = torch.tensor([weights[at][t] for t in tokens], device=device).double()
            direction = weight @ (decoder.unembed[tokens].double() - mean)
            found.append(decoder.ln_final.reader(row[None], direction[None])[0].cpu())
        return torch.stack(found)

    reading = HeadReading(
        along=along,
        layers=range(model.n_layers),
        method=ATTRIBUTION,
        metric=(f"{task.metric.name}, linearised", task.metric.unit),
    )
    effects, ends = head_contrast(model, rows, reading)
    fold = np.zeros((len(task), len(owner)))
    fold[owner, np.arange(len(owner))] = 1.0
    return head_scores(
        model,
        task,
        np.tensordot(fold, effects, 1),
        (fold @ ends[0], fold @ ends[1]),
        method=reading.method,
        direction="noise",
        metric=reading.metric,
        layers=reading.layers,
        positions="the tokens from which answers are read",
    )


def _prefixes(
    targets: Targets, per_token: bool
) -> tuple[list[int], list[tuple[int, ...]], list[dict[int, float]]]:
    """What is read of answers: for every prompt and beginning of an answer, the next tokens.

    The prompt's number, the beginning, and the weight of each next token: a share of the answers,
    negative for wrong ones.
    """
    found: dict[tuple[int, tuple[int, ...]], dict[int, float]] = {}
    assert targets.strings is not None
    for i, strings in enumerate(targets.strings):
        for side, sign in ((targets.answers, 1.0), (targets.wrong, -1.0)):
            chosen = [strings[number] for number in side[i].tolist() if number >= 0]
            for string in chosen:
                share = sign / len(chosen) / (len(string) if per_token else 1)
                for j, token in enumerate(string):
                    read = found.setdefault((i, string[:j]), {})
                    read[token] = read.get(token, 0.0) + share
    return [i for i, _ in found], [prefix for _, prefix in found], list(found.values())


def mean_rows(unembed: Tensor, tokens: Tensor) -> Tensor:
    """(n, d) float64 mean unembedding of each row's tokens, -1 left out."""
    real = (tokens >= 0)[..., None]
    taken = unembed[tokens.clamp(min=0).to(unembed.device)].detach().cpu().double()
    return torch.where(real, taken, 0.0).sum(1) / real.sum(1)


@dataclass(frozen=True, kw_only=True)
class LabelNull(Brief):
    """The null of a contrast: its effects with the two labels of pairs exchanged at random.

    limit: the 95 % quantile over permutations of the strongest head's absolute effect, as a
    fraction of the gap. p: (layer, head) share of permutations whose strongest head is at least as
    strong; it is corrected for the number of heads, and at least 1 / draws. draws: number of
    permutations, with the true labels; all 2^n if there are no more.
    """

    limit: float
    p: np.ndarray
    draws: int


def permuted_labels(contrast: Scores, *, draws: int = 1000, seed: int = 0) -> LabelNull:
    """The null of `head_logit_attribution` and `direction_projection`.

    The two prompts of a pair are exchanged at random: the label says which of them shows the
    behaviour.

    Raises:
        InterpError: scores that are not a difference of the two prompts of a pair.
    """
    if contrast.method not in (ATTRIBUTION, PROJECTION):
        found = f"{contrast.method} does not change its sign with the labels"
        raise InterpError(
            "permuting labels", found, "take head_logit_attribution or direction_projection"
        )
    flat = contrast.effects.reshape(contrast.n, -1)
    strongest, p = flip_maxima(flat, by="absolute", draws=draws, seed=seed)
    return LabelNull(
        limit=float(np.quantile(strongest, 0.95) / abs(contrast.gap)),
        p=p.reshape(contrast.values.shape),
        draws=len(strongest),
    )


def top_stability(scores: Scores, *, k: int = 10, draws: int = 500, seed: int = 0) -> float:
    """Mean Jaccard overlap of the top k with the top k of bootstrap samples of the prompts.

    Raises:
        InterpError: k that is not between 1 and the number of heads less one.
    """
    flat = scores.effects.reshape(scores.n, -1)
    if not 0 < k < flat.shape[1]:
        raise InterpError(f"the top {k}", f"{flat.shape[1]} heads", "choose fewer")
    weights = bootstrap_weights(scores.n, draws, seed=seed)
    sign = np.sign(scores.gap)
    top = set(np.argsort(-sign * flat.mean(0), kind="stable")[:k].tolist())
    drawn = np.argsort(-sign * (weights @ flat), axis=1, kind="stable")[:, :k]
    return float(np.mean([len(top & set(row)) / len(top | set(row)) for row in drawn.tolist()]))
