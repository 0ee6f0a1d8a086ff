"""Maps from one model's residual stream to another's, fitted on their shared vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.folds import joined
from interp.core.schema import Brief
from interp.core.statistics import Estimate, mean_estimate, ratio_estimate
from interp.models.language_model import LanguageModel

ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap(Brief):
    """A linear map from a source's to a target's residual stream, and its held-out accuracy.

    Attributes:
        source, target: names of the models.
        source_hash, target_hash: their hashes.
        source_layers, target_layers: their numbers of layers.
        matrix: (d_source, d_target), float64: x_target = x_source @ matrix.
        ridge: the ridge penalty.
        seed: the seed of the split.
        n_shared: number of tokens in both vocabularies.
        n_train: number of tokens fitted.
        n_held_out: number of held-out tokens.
        r2: on held-out tokens, 1 - squared error / squared distance from the mean of the fitted
            tokens.
        cosine: on held-out tokens, the mean cosine of a mapped row with the true row.
        shuffled_r2, shuffled_cosine: the same for a map fitted to randomly paired rows.
    """

    source: str
    target: str
    source_hash: str
    target_hash: str
    source_layers: int
    target_layers: int
    matrix: Tensor
    ridge: float
    seed: int
    n_shared: int
    n_train: int
    n_held_out: int
    r2: Estimate
    cosine: Estimate
    shuffled_r2: Estimate
    shuffled_cosine: Estimate

    def __str__(self) -> str:
        return (
            f"{self.source} -> {self.target}, {self.n_shared} shared tokens, {self.n_train} fitted"
            f"\n  R2      {self.r2}\n  cosine  {self.cosine}"
            f"\n  shuffled pairs: R2 {self.shuffled_r2}; cosine {self.shuffled_cosine}"
        )


@dataclass(frozen=True, kw_only=True)
class TransferredProbes(Brief):
    """Probe directions in the target: row i is source probe i, a unit vector for `layers[i]`."""

    directions: Tensor
    layers: tuple[int, ...]


def embedding_map(
    source: LanguageModel,
    target: LanguageModel,
    *,
    ridge: float = 0.1,
    n_tokens: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> EmbeddingMap:
    """Ridge regression from a source's to a target's unembedding rows.

        T = (A^T A + ridge I)^-1 A^T B,   A (tokens, d_source), B (tokens, d_target)

    Row i of A and of B belong to tokens with the same text. Texts of several tokens in one
    vocabulary (byte fragments) are omitted, unless the two vocabularies are identical: then all
    tokens with a text count. Of tokens with equal rows in either model only the first counts, so
    that equal rows are never both fitted and held out. There is no intercept, and norms are not
    folded in.

    Args:
        source: the model that vectors come from.
        target: the model that they are mapped to.
        ridge: weight of the penalty on T, in squared units of A.
        n_tokens: number of shared tokens fitted, drawn at random; all that are not held out by
            default.
        held_out: share of the shared tokens that is held out.
        seed: seed of the split and of the shuffled pairs.

    Raises:
        InterpError: a model without a tokeniser, fewer than four shared tokens, n_tokens out of
            range, a ridge that is not positive, or a share outside 0 to 1.

    Departs from the source: tokens are matched by text and drawn without replacement, and the map
    is evaluated on held-out tokens and compared with shuffled pairs.
    Sources: Lee et al. 2025, arXiv 2503.21073 and 2504.14379 (EMB2EMB; ridge 0.1).
    """
    if not ridge > 0 or not 0 < held_out < 1:
        raise InterpError(
            "an embedding map",
            f"ridge={ridge}, held_out={held_out}",
            "give a ridge above 0, and a share between 0 and 1",
        )
    pairs, rows = shared_tokens(source, target), (_unembedding(source), _unembedding(target))
    bits = (
        (hash(row.tobytes()) for row in _taken(side, some).numpy())
        for side, some in zip(rows, pairs.T, strict=True)
    )
    pairs = pairs[np.unique(joined(*bits), return_index=True)[1]]
    n_held_out = max(2, round(held_out * len(pairs)))
    n_train = len(pairs) - n_held_out if n_tokens is None else n_tokens
    if not 2 <= n_train <= len(pairs) - n_held_out:
        raise InterpError(
            f"an embedding map from {n_train} tokens",
            f"{source.name} and {target.name} share {len(pairs)}, {n_held_out} of them held out",
            "give n_tokens from 2 to the number not held out",
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pairs), generator=generator)
    test, train = pairs[order[:n_held_out]], pairs[order[n_held_out : n_held_out + n_train]]
    shuffled = torch.stack([train[:, 0], train[torch.randperm(n_train, generator=generator), 1]], 1)
    matrix = _fit(*rows, train, ridge)
    r2, cosine = _evaluate(*rows, matrix, train, test)
    shuffled_r2, shuffled_cosine = _evaluate(*rows, _fit(*rows, shuffled, ridge), train, test)
    return EmbeddingMap(
        source=source.name, target=target.name,
        source_hash=source.hash, target_hash=target.hash,
        source_layers=source.n_layers, target_layers=target.n_layers,
        matrix=matrix, ridge=ridge, seed=seed,
        n_shared=len(pairs), n_train=n_train, n_held_out=n_held_out,
        r2=r2, cosine=cosine, shuffled_r2=shuffled_r2, shuffled_cosine=shuffled_cosine,
    )  # fmt: skip


def transfer_probes(
    directions: Tensor, embedding: EmbeddingMap, target_layers: int | None = None
) -> TransferredProbes:
    """Map probe directions, one per layer, from a source's to a target's residual stream.

        p_target = p T / |p T|,   for layer int(p L_target / L_source) of the target

    If the target is deeper, some of its layers get no probe. If it is shallower, several probes
    share a layer, and all are kept.

    Args:
        directions: (L_source, d_source) one probe direction per layer of the source.
        embedding: a map of `embedding_map`.
        target_layers: L_target; the target's number of layers by default.

    Raises:
        InterpError: directions of another shape, a target without layers, or a direction that is
            zero or not finite, or that is mapped to zero.

    Source: Lee et al. 2025, arXiv 2504.14379 (36 layers to 48).
    """
    wanted = (embedding.source_layers, embedding.matrix.shape[0])
    if tuple(directions.shape) != wanted:
        raise InterpError(
            f"probes of shape {tuple(directions.shape)}",
            f"{embedding.source} has {wanted[0]} layers of width {wanted[1]}",
            "give (layers, d_model), one direction per layer",
        )
    layers = embedding.target_layers if target_layers is None else target_layers
    mapped = directions.detach().cpu().double() @ embedding.matrix
    lengths = mapped.norm(dim=1, keepdim=True)
    bad = ~(torch.isfinite(lengths) & (lengths > 0))[:, 0]
    if layers < 1 or bool(bad.any()):
        raise InterpError(
            f"probes for {layers} layers",
            f"zero or not finite once mapped: the probes of layers {bad.nonzero()[:, 0].tolist()}",
            "give directions that are finite and not zero, and at least one layer",
        )
    return TransferredProbes(
        directions=mapped / lengths,
        layers=tuple(probe * layers // len(directions) for probe in range(len(directions))),
    )


def shared_tokens(source: LanguageModel, target: LanguageModel) -> Tensor:
    """(n, 2) ids of the tokens whose text two models share, in the source's order.

    Raises:
        InterpError: a model without a tokeniser, or fewer than four shared tokens.
    """
    for model in (source, target):
        if model.tokenizer is None:
            raise InterpError(
                f"the tokens of {model.name}", "it has no tokeniser", "wrap it with its tokeniser"
            )
    vocabularies = [
        {text: i for text, i in model.tokenizer.get_vocab().items() if i < model.d_vocab}
        for model in (source, target)
    ]
    if vocabularies[0] == vocabularies[1]:
        pairs = [(i, i) for i in sorted(set(vocabularies[0].values()))]
    else:
        texts = [
            _unique_texts(model, list(vocabulary))
            for model, vocabulary in zip((source, target), vocabularies, strict=True)
        ]
        pairs = sorted((i, texts[1][text]) for text, i in texts[0].items() if text in texts[1])
    if len(pairs) < 4:
        raise InterpError(
            f"the tokens {source.name} and {target.name} share",
            f"{len(pairs)} of {source.d_vocab} and {target.d_vocab}",
            "use models with a common vocabulary",
        )
    return torch.tensor(pairs)


def _unique_texts(model: LanguageModel, tokens: list[str]) -> dict[str, int]:
    """Text -> id, for texts of exactly one token.

    The text is what the token adds after another token. This keeps its leading space, however the
    tokeniser marks it.
    """
    tokenizer = model.tokenizer
    ids = tokenizer.convert_tokens_to_ids(tokens)
    first = tokenizer.convert_tokens_to_string(["a"])
    found: dict[str, list[int]] = {}
    for token, number in zip(tokens, ids, strict=True):
        text = tokenizer.convert_tokens_to_string(["a", token]).removeprefix(first)
        found.setdefault(text, []).append(number)
    return {text: ids[0] for text, ids in found.items() if text and len(ids) == 1}


def _unembedding(model: LanguageModel) -> Tensor:
    """(d_vocab, d_model), as stored."""
    if model.decoder is not None:
        return model.decoder.unembed
    return model.bridge.W_U.detach().T


def _fit(left: Tensor, right: Tensor, pairs: Tensor, ridge: float) -> Tensor:
    width = left.shape[1]
    gram = ridge * torch.eye(width, dtype=torch.float64)
    cross = torch.zeros(width, right.shape[1], dtype=torch.float64)
    for part in pairs.split(ROWS):
        a, b = _taken(left, part[:, 0]), _taken(right, part[:, 1])
        gram += a.T @ a
        cross += a.T @ b
    return torch.linalg.solve(gram, cross)


def _evaluate(
    left: Tensor, right: Tensor, matrix: Tensor, train: Tensor, test: Tensor
) -> tuple[Estimate, Estimate]:
    """R2, a ratio of means over tokens, and the mean cosine, on held-out tokens."""
    mean = sum(_taken(right, p[:, 1]).sum(0) for p in train.split(ROWS)) / len(train)
    gained, total, cosine = [], [], []
    for part in test.split(ROWS):
        a, b = _taken(left, part[:, 0]) @ matrix, _taken(right, part[:, 1])
        total.append((b - mean).pow(2).sum(1))
        gained.append(total[-1] - (b - a).pow(2).sum(1))
        cosine.append(torch.cosine_similarity(a, b, dim=1))
    return ratio_estimate(torch.cat(gained), torch.cat(total)), mean_estimate(torch.cat(cosine))


def _taken(rows: Tensor, ids: Tensor) -> Tensor:
    return rows[ids.to(rows.device)].double().cpu()
