"""The tuned lens: for each layer an affine map that is trained to predict the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.core.arguments import reads_arguments
from interp.core.components import within
from interp.core.corpus import Corpus, texts_in
from interp.core.errors import InterpError
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.schema import Count, Positive, Seed, Whole, checked
from interp.core.statistics import widened
from interp.engine.architecture import Decoder
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.models.unembedding import BLOCK
from interp.probing.lens_maps import LensMaps
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop
from interp.runs.capture import Activations, run_with_cache

VERSION = 1

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties that are tried, in units of the mean variance of a dimension."""

FOLD = 5
"""Every fifth text of a half chooses the penalty and the step of training."""

CHECKS = 10
"""How often the training asks the held-out texts."""


@reads_arguments
def fit_tuned_lens(
    model: LanguageModel,
    texts: Corpus,
    *,
    layers: list[int] | None = None,
    steps: int = 100,
    batch: int = 128,
    rate: float = 3e-4,
    skip: int = 4,
    corpus: str = "",
    seed: int = 0,
    **run: Unpack[RunKeywords],
) -> LensMaps:
    """Train affine maps so that the lens gives the model's own next-token distribution.

        minimise the mean over tokens of KL(p_last || softmax(W_U norm_final(M_l h_l + b_l)))

    A map starts from a ridge regression of h_last - h_l on h_l and is then trained by Adam. Every
    fifth text of a half is held out: it chooses the ridge penalty (the identity is among the
    choices) and the step at which training ends. The even and the odd texts are trained apart, and
    the lens is the mean of their maps. Each finished map is kept in the cache, so a stopped call
    goes on.

    Args:
        model: a model with a known architecture.
        texts: at least 10 texts.
        layers: the layers, without the last one; all by default.
        steps: steps of Adam; 0 leaves the ridge regression.
        batch: tokens in a step.
        rate: the learning rate.
        skip: first tokens of a text that are not used.
        corpus: what the texts are, in words.
        seed: of the batches.
        run: budget_gb, the memory for the states, 2 by default; progress, called with (maps done,
            maps in all); cancelled.

    Raises:
        InterpError: an unknown architecture, layers that do not exist, or fewer than 10 texts of
            more than `skip` tokens.

    Departs from the source: it starts from a ridge regression, because the corpus may be small.
    Source: Belrose et al. 2023 (arXiv 2303.08112).
    """
    decoder = model.require_decoder("a tuned lens")
    last = model.n_layers - 1
    chosen = sorted({*within(layers, last, "layer", f"{model.name} below the last one")})
    skip, steps = checked(Whole, skip, "skip"), checked(Whole, steps, "steps")
    batch, rate = checked(Count, batch, "tokens in a batch"), checked(Positive, rate, "rate")
    seed, options = checked(Seed, seed, "a seed"), RunOptions(**{"budget_gb": 2.0, **run})
    rows = [model.tokenize(text).tokens for text in texts_in(texts)]
    rows = [row for row in rows if len(row) > skip]
    if len(rows) < 2 * FOLD:
        found = f"{len(rows)} texts of more than {skip} tokens"
        raise InterpError("fitting a tuned lens", found, f"give at least {2 * FOLD}")
    asked = {"rows": rows, "layers": chosen, "steps": steps, "batch": batch, "rate": rate}
    key = result_key("tuned lens", VERSION, model, skip=skip, seed=seed, **asked)
    fits: list[np.ndarray] = []
    with stoppable(options.cancelled), chunks_of(key) as chunks:
        for half in (0, 1):
            mine = rows[half::2]
            with torch.no_grad():
                seen = run_with_cache(
                    model,
                    mine,
                    sites="resid_post",
                    layers=[*chosen, last],
                    budget_gb=options.budget_gb,
                )
            held = [i % FOLD == FOLD - 1 for i in range(len(mine))]
            sizes = torch.tensor([len(row) - skip for row in mine])
            part = torch.tensor(held).repeat_interleave(sizes)
            work = partial(_map_of, decoder, seen, mine, part, last)
            for layer in chosen:
                made = partial(work, layer, skip=skip, steps=steps, batch=batch, rate=rate)
                fits.append(chunks.once(len(fits), model.d_model, partial(made, seed=seed)))
                if options.progress is not None:
                    options.progress(len(fits), 2 * len(chosen))
        drop(chunks)
    both = torch.from_numpy(np.stack(fits)).unflatten(0, (2, len(chosen)))
    maps, offsets = both[..., :-1].contiguous(), both[..., -1].contiguous()
    return LensMaps(
        kind="tuned",
        model=model.name,
        model_hash=model.hash,
        layers=tuple(chosen),
        matrices=maps.mean(0),
        offsets=offsets.mean(0),
        halves=maps,
        half_offsets=offsets,
        n=(len(rows[::2]), len(rows[1::2])),
        corpus=corpus,
        options={"skip": skip, "steps": steps, "batch": batch, "rate": rate, "seed": seed},
    )


def _map_of(
    decoder: Decoder,
    seen: Activations,
    rows: Sequence[Sequence[int]],
    held: Tensor,
    last: int,
    layer: int,
    *,
    skip: int,
    **training: Any,
) -> np.ndarray:
    """The map of one layer, from the captured states of one half of the corpus."""
    before, final = (
        torch.cat([seen[at, "resid_post"][i, skip : len(row)] for i, row in enumerate(rows)])
        for at in (layer, last)
    )
    return train_map(decoder, before, final, held, **training).numpy()


def train_map(
    decoder: Decoder,
    before: Tensor,
    final: Tensor,
    held: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
) -> Tensor:
    """(d_model, d_model + 1) float32: the map of one layer and its offset in the last column.

    From the states of the layer and of the last one (token, d_model); `held` are the tokens that
    choose.
    """
    before, final = widened(before), widened(final)
    train, choose = ~held.to(before.device), held.to(before.device)

    def loss(found: Tensor, rows: Tensor) -> Tensor:
        mapped = before[rows] @ found[:, :-1].T + found[:, -1]
        return _divergence(decoder, final[rows], mapped)

    def judged(found: Tensor) -> float:
        with torch.no_grad():
            rows, size = choose.nonzero()[:, 0], max(1, BLOCK // decoder.d_vocab)
            parts = [loss(found, some) * len(some) for some in rows.split(size)]
            return float(torch.stack(parts).sum() / len(rows))

    starts = [_identity(before), *_ridge(before[train], final[train])]
    best, chosen = min(((judged(one), i) for i, one in enumerate(starts)))
    found, generator = starts[chosen], torch.Generator().manual_seed(seed)
    map_ = found.clone().requires_grad_()
    adam, rows = torch.optim.Adam([map_], lr=rate), train.nonzero()[:, 0]
    for step in range(1, steps + 1):
        stop_if_asked()
        drawn = rows[torch.randint(len(rows), (batch,), generator=generator).to(rows.device)]
        adam.zero_grad()
        with torch.enable_grad():
            loss(map_, drawn).backward()
        adam.step()
        if step % max(1, steps // CHECKS) == 0 and (value := judged(map_.detach())) < best:
            best, found = value, map_.detach().clone()
    return found.float().cpu()


def _divergence(decoder: Decoder, final: Tensor, mapped: Tensor) -> Tensor:
    """The mean over tokens of KL(model || lens)."""
    own, read = (
        widened(decoder.logits(decoder.ln_final(x.to(decoder.unembed)))).log_softmax(-1)
        for x in (final, mapped)
    )
    return F.kl_div(read, own, log_target=True, reduction="batchmean")


def _identity(before: Tensor) -> Tensor:
    d = before.shape[1]
    return torch.cat([torch.eye(d, d), torch.zeros(d, 1)], 1).to(before)


def _ridge(before: Tensor, final: Tensor) -> list[Tensor]:
    """Ridge regressions of final - before on before, with an offset, for every penalty."""
    x, y = before.double(), (final - before).double()
    mean, shift = x.mean(0), y.mean(0)
    square = (x - mean).T @ (x - mean)
    across = (x - mean).T @ (y - shift)
    found = []
    for penalty in PENALTIES:
        ridge = penalty * square.diagonal().mean() * torch.eye(len(square)).to(square)
        slope = torch.linalg.solve(square + ridge, across).T
        offset = shift - slope @ mean
        found.append(_identity(before) + torch.cat([slope, offset[:, None]], 1).to(before))
    return found
