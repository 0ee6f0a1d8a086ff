"""Which keys a query may attend to: causal and local attention, and prompts with branches."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from interp.core.branches import places
from interp.engine.architecture import Attention


@lru_cache(maxsize=4096)
def allowed_pairs(
    start: int,
    length: int,
    window: int | None,
    repeats: int,
    device: str,
    branches: tuple[int, ...] = (),
) -> Tensor | None:
    """(repeats * queries, keys) True if a query may attend to a key; None if all pairs are True."""
    position, branch = map(torch.from_numpy, places(length, branches))
    keys, queries = position[None], position[start:, None]
    allowed = keys <= queries
    if window is not None:
        allowed &= keys > queries - window
    if branches:
        allowed &= (branch == 0) | (branch == branch[start:, None])
    if bool(allowed.all()):
        return None
    return allowed.repeat(repeats, 1).to(device)


def score_mask(
    attn: Attention,
    allowed: Tensor | None,
    keys: int,
    queries: int,
    branches: tuple[int, ...] = (),
) -> Tensor | None:
    """What `attention_pattern` takes as its mask: `allowed`, and the bias of the scores if any.

    `allowed` is (..., rows, keys) bool. Its rows are `queries` of each of the heads that share a
    key/value head. With a bias the mask is added to the scores: (..., kv heads, rows, keys).
    """
    if attn.bias is None:
        return allowed
    at = torch.from_numpy(places(keys, branches)[0])
    bias = attn.bias(at.to(attn.o.weight.device))
    bias = bias.unflatten(0, (attn.n_kv_heads, -1)).repeat_interleave(queries, 1)
    return bias if allowed is None else bias.masked_fill(~allowed, -torch.inf)


def sink_of(attn: Attention, queries: int) -> Tensor | None:
    """(kv heads, rows, 1) the sinks of heads in the rows of `score_mask`; None without sinks."""
    if attn.sinks is None:
        return None
    return attn.sinks.view(attn.n_kv_heads, -1, 1).repeat_interleave(queries, 1)
