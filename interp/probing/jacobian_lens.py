"""The Jacobian lens: the mean effect of a layer's state on the last layer's, to first order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from interp.core.arguments import reads_arguments
from interp.core.components import within
from interp.core.corpus import Corpus, texts_in
from interp.core.errors import InterpError
from interp.core.run_options import Progress
from interp.core.schema import Count, Whole, checked
from interp.engine.forward import Runner
from interp.engine.jacobians import mean_jacobians
from interp.engine.memory import keep_freed_memory, says_too_little
from interp.engine.stopping import StopCheck, stoppable
from interp.models.language_model import LanguageModel
from interp.probing.lens_maps import LensMaps
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop
from interp.runs.parts import in_order
from interp.runs.workers import each_with_model

VERSION = 1


@reads_arguments
@says_too_little
def fit_jacobian_lens(
    model: LanguageModel,
    texts: Corpus,
    *,
    layers: list[int] | None = None,
    skip: int = 16,
    max_tokens: int = 128,
    corpus: str = "",
    workers: int = 1,
    keep: bool = False,
    progress: Progress | None = None,
    cancelled: StopCheck = lambda: False,
) -> LensMaps:
    """Fit a Jacobian lens: the mean Jacobian of the last layer with respect to each layer.

        J_l = mean over texts of  mean over t in V of  sum over t' in V, t' >= t, of
              d h_last[t'] / d h_l[t],      lens:  softmax(W_U norm_final(J_l h_l))

    V are the positions of a text from `skip` to the last but one. The even and the odd texts are
    also fitted apart. One backward pass for each of d_model outputs is exact; there is no sampling.
    Each text is kept in the cache as soon as it is done, so a stopped call goes on, and a longer
    list of texts that begins with the same ones continues from them with `keep`.

    Args:
        model: a model with a known architecture.
        texts: texts or token ids; a file is read line by line. Texts with fewer than skip + 2
            tokens are left out.
        layers: the layers, without the last one; all by default. Layers above the lowest one cost
            nothing.
        skip: first tokens that are not averaged; their states differ from all others.
        max_tokens: a text is cut after this many tokens.
        corpus: what the texts are, in words.
        workers: processes that share the texts.
        keep: leave the finished texts in the cache at the end.
        progress: called with (texts done, texts in all).
        cancelled: asked in every layer; the work stops when it returns True.

    Raises:
        InterpError: an unknown architecture, layers that do not exist, or fewer than two texts that
            are long enough.

    Sources: Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language
        Models". Equal to `JacobianLens.fit` of TransformerLens.
    """
    model.require_decoder("a Jacobian lens")
    last = model.n_layers - 1
    chosen = sorted({*within(layers, last, "layer", f"{model.name} below the last one")})
    skip, max_tokens = checked(Whole, skip, "skip"), checked(Count, max_tokens, "max_tokens")
    units = list(_long_enough(model, texts, skip, max_tokens))
    if len(units) < 2:
        found = f"{len(units)} texts of at least {skip + 2} tokens"
        raise InterpError("fitting a Jacobian lens", found, "give more texts, longer ones, or skip")
    work = partial(_of_text, layers=tuple(chosen), skip=skip)
    key = result_key("jacobian lens", VERSION, model, layers=chosen, skip=skip)
    sums = torch.zeros(2, len(chosen), model.d_model, model.d_model, dtype=torch.float64)
    keep_freed_memory()
    with stoppable(cancelled), chunks_of(key) as chunks:
        do = partial(
            each_with_model,
            work,
            model,
            workers=workers,
            progress=progress,
            cancelled=cancelled,
        )
        for number, values in enumerate(in_order(units, do, chunks=chunks)):
            sums[number % 2] += torch.from_numpy(values)
        if not keep:
            drop(chunks)
    counts = torch.tensor([(len(units) + 1) // 2, len(units) // 2])
    return LensMaps(
        kind="jacobian",
        model=model.name,
        model_hash=model.hash,
        layers=tuple(chosen),
        matrices=(sums.sum(0) / len(units)).float(),
        halves=(sums / counts[:, None, None, None]).float(),
        n=tuple(counts.tolist()),  # type: ignore[arg-type]
        corpus=corpus,
        options={"skip": skip, "max_tokens": max_tokens},
    )


def _long_enough(
    model: LanguageModel, texts: Corpus, skip: int, max_tokens: int
) -> Iterator[np.ndarray]:
    """The token ids of the texts that have a position to average."""
    for text in texts_in(texts):
        tokens = model.tokenize(text).tokens[:max_tokens]
        if len(tokens) >= skip + 2:
            yield np.array(tokens)


def _of_text(
    model: LanguageModel, tokens: np.ndarray, *, layers: tuple[int, ...], skip: int
) -> np.ndarray:
    """(layers, d_model, d_model) the mean Jacobians of one text."""
    runner = Runner(model.require_decoder("a Jacobian lens"))
    return mean_jacobians(runner, tokens.tolist(), layers, skip=skip).numpy()
