"""The forward pass of one block on flat tokens of rows of any length.

In a baseline, every row is a whole prompt. A restarted variant is a row with only the positions
from its first change on; for earlier positions it reads the baseline's keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from interp.core.components import EXPERT_SITES
from interp.engine.architecture import Attention, Block, Decoder, Experts, Norm, normed
from interp.engine.layout import Branches, Indices, Layout, RowGroup, ranges, tails_of
from interp.engine.masks import allowed_pairs, score_mask, sink_of
from interp.engine.stopping import stop_if_asked


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """New values of a site: entry j sets row `ids[j]` at `positions[j]` to `values[j]`.

    With `components`, only the head or neuron `components[j]` of the site is replaced.
    """

    site: str
    ids: Indices
    positions: Indices
    values: Tensor
    components: Indices | None = None

    def apply(self, tensor: Tensor, layout: Layout) -> Tensor:
        """A copy of `tensor` with the new values."""
        tokens = layout.flat(self.ids, self.positions).to(tensor.device)
        edited = tensor.clone()
        values = self.values.to(edited)
        if self.components is None:
            edited[tokens] = values.reshape(len(tokens), *edited.shape[1:])
        else:
            edited[tokens, torch.from_numpy(self.components).to(tensor.device)] = values
        return edited


class SiteEdit(Protocol):
    """A change of a site in a block: the name of the site, and a function that changes it."""

    @property
    def site(self) -> str: ...
    def apply(self, tensor: Tensor, layout: Layout) -> Tensor: ...


Edits = Mapping[int, Sequence[SiteEdit]]


PREFIX_SITES = ("k_rot", "v")
"""What later tokens read of the tokens before them."""


@dataclass(kw_only=True)
class Baseline:
    """The stored sites of an unchanged run over some prompts.

    `sites[layer, name]` is (tokens, ...), with the tokens of all prompts in one axis; the tokens of
    prompt i begin at `offset[i]`. Besides TransformerLens' site names there are three internal
    ones: `k_rot` (keys after norm and rotary embedding), and `attn_raw` and `mlp_raw` (outputs
    before a post-norm). resid_pre of layer n_layers is the final residual. If all sites but `k_rot`
    and `v` are stored for some tokens only, `place` maps a flat token to its index there.
    `branches` are those of every prompt (`interp.core.branches`).
    """

    lengths: Indices
    offset: Indices
    place: Tensor | None = None
    sites: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    branches: Branches = ()

    def tails(self, prompts: Indices) -> Indices:
        """(prompts,) number of tokens read of each."""
        return tails_of(self.branches, prompts)

    def site(self, layer: int, name: str) -> Tensor:
        """A site at every flat token; resid_post is resid_pre of the next layer."""
        return self.sites[(layer + 1, "resid_pre") if name == "resid_post" else (layer, name)]

    def at(self, layer: int, site: str, tokens: Tensor) -> Tensor:
        """Values of a site at flat tokens."""
        if self.place is not None and site not in PREFIX_SITES:
            tokens = self.place[tokens]
        return self.sites[layer, site][tokens]

    def of_prompts(self, chosen: np.ndarray) -> Baseline:
        """The same run of some prompts, by number or mask, one of them perhaps several times."""
        return replace(self, lengths=self.lengths[chosen], offset=self.offset[chosen])

    def only_ends(self, last: int) -> Baseline:
        """The same run, with only keys and values stored for more than the last tokens."""
        kept = torch.from_numpy(
            ranges(self.offset + self.lengths - last, np.full_like(self.lengths, last))
        )
        place = torch.full((int(self.lengths.sum()),), -1)
        place[kept] = torch.arange(len(kept))
        sites = {
            key: value if key[1] in PREFIX_SITES else value[kept.to(value.device)]
            for key, value in self.sites.items()
        }
        return replace(self, place=place.to(self.sites[0, "resid_pre"].device), sites=sites)

    def flat(self, prompts: Indices, positions: Indices) -> Tensor:
        """Flat token indices of (prompt, position) pairs."""
        return torch.from_numpy(self.offset[prompts] + positions)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of the first `cos.shape[-1]` dimensions, see `Rotation`."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        left, right = turned[..., ::2], turned[..., 1::2]
        other = torch.stack([-right, left], dim=-1).flatten(-2)
    else:
        left, right = turned.chunk(2, dim=-1)
        other = torch.cat([-right, left], dim=-1)
    turned = turned * cos[:, None] + other * sin[:, None]
    turned = turned.to(x.dtype)  # some models keep their angles in float32
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _head_norm(attn: Attention, heads: Tensor, norm: Norm | None) -> Tensor:
    """The query or key norm, over each head or over all heads together."""
    if norm is None:
        return heads
    if attn.norm_over_heads:
        return norm(heads.flatten(1)).view_as(heads)
    return norm(heads)


def attention_pattern(
    attn: Attention, q: Tensor, k: Tensor, mask: Tensor | None, sink: Tensor | None = None
) -> Tensor:
    """softmax(softcap(scale * q k^T) + mask), computed in float32 or wider, in the dtype of q.

    `sink`, with one column of keys, is a further score whose share is left out of the pattern.
    """
    return _weights(attn, q @ k.transpose(-1, -2), mask, sink)


def _weights(attn: Attention, products: Tensor, mask: Tensor | None, sink: Tensor | None) -> Tensor:
    scores = products * attn.scale
    if attn.softcap is not None:
        scores = torch.tanh(scores / attn.softcap) * attn.softcap
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    wide = scores if scores.dtype == torch.float64 else scores.float()
    pattern = wide.softmax(-1)
    if sink is not None:
        pattern = pattern * torch.sigmoid(wide.logsumexp(-1, keepdim=True) - sink.to(wide))
    return pattern.to(products.dtype)


def prompt_pattern(attn: Attention, q: Tensor, k: Tensor, branches: tuple[int, ...] = ()) -> Tensor:
    """(head, query, key) the attention within one prompt.

    From its queries and keys (token, heads, d_head) after their norms and the rotary embedding.
    """
    n, per_kv = len(q), attn.n_heads // attn.n_kv_heads
    allowed = allowed_pairs(0, n, attn.window, per_kv, str(q.device), branches)
    pattern = attention_pattern(
        attn,
        rearrange(q, "pos (kv group) d -> kv (group pos) d", group=per_kv),
        k.transpose(0, 1),
        score_mask(attn, allowed, n, n, branches),
        sink_of(attn, n),
    )
    return pattern.view(attn.n_heads, n, n)


class Runner:
    """Runs the blocks of a `Decoder` on rows of different lengths."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.device = decoder.unembed.device
        self.dtype = decoder.unembed.dtype
        self._angles: dict[str | None, tuple[Tensor, Tensor]] = {}

    def embed(self, prompts: Sequence[Sequence[int]], layout: Layout) -> Tensor:
        """(tokens, d_model) resid_pre of layer 0 of whole prompts, in the order of the layout."""
        flat = torch.tensor([token for prompt in prompts for token in prompt])
        tokens, positions = flat[layout.base].to(self.device), layout.positions.to(self.device)
        return self.decoder.embed(tokens, positions)

    # -- parts of a block ------------------------------------------------------------------

    def angles(self, kind: str | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines of some positions, from a table that grows as needed."""
        assert self.decoder.rotary is not None
        need = int(positions.max()) + 1
        if kind not in self._angles or len(self._angles[kind][0]) < need:
            grown = torch.arange(max(need, 256), device=self.device)
            self._angles[kind] = self.decoder.rotary(grown, kind)
        cos, sin = self._angles[kind]
        where = positions.to(self.device)
        return cos[where], sin[where]

    def rotated(self, attn: Attention, which: str, heads: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys after their norm and the rotary embedding."""
        norm = attn.q_norm if which == "q" else attn.k_norm
        return self.turned(attn, _head_norm(attn, heads, norm), positions)

    def turned(self, attn: Attention, heads: Tensor, positions: Tensor) -> Tensor:
        """Heads (token, heads, d_head) after the rotary embedding alone."""
        if self.decoder.rotary is None or attn.rotation == "none":
            return heads
        turn = attn.rotation == "interleaved"
        return _rotate(heads, *self.angles(attn.rotary, positions), turn)

    def project(self, block: Block, which: str, normed: Tensor) -> Tensor:
        """Site q, k or v of normalised residuals: (tokens, heads, d_head)."""
        attn = block.attn
        return getattr(attn, which)(normed).unflatten(-1, (-1, attn.d_head))

    def mlp_post(self, block: Block, resid: Tensor, capture: dict[str, Tensor] | None) -> Tensor:
        """Neuron activations (site `post`) when the MLP reads `resid`."""
        read = normed(block.ln2, resid)
        pre = block.neurons.gate(read)
        post = block.neurons.act(pre)
        linear = None if block.neurons.up is None else block.neurons.up(read)
        if capture is not None:
            capture["pre"] = pre
            if linear is not None:
                capture["pre_linear"] = linear
        if linear is None:
            return post.view_as(post)  # a linear activation returns its input, which is a site too
        if post is pre or torch.is_grad_enabled():
            return post * linear
        # In place, because allocating a tensor of this size takes as long as the product.
        return post.mul_(linear)

    def mlp_out(self, block: Block, resid: Tensor) -> Tensor:
        """What the MLP writes to the residual stream when it reads `resid`."""
        if isinstance(block.mlp, Experts):
            return normed(block.ln2_post, block.mlp.write(normed(block.ln2, resid)))
        return self.mlp_written(block, self.mlp_post(block, resid, None))

    def mlp_written(self, block: Block, post: Tensor) -> Tensor:
        """What the MLP writes to the residual stream when its neurons have the values `post`."""
        return normed(block.ln2_post, block.neurons.down(post))

    def attention(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        base: Baseline | None,
        *,
        only_last: bool,
        patterns: Tensor | None = None,
    ) -> Tensor:
        """Site z, (queries, heads, d_head). The attention is written to `patterns`, if given."""
        stop_if_asked()
        attn = self.decoder.blocks[layer].attn
        per_kv = attn.n_heads // attn.n_kv_heads
        z = torch.empty_like(q)
        for group in layout.groups:
            n, size = group.rows.stop - group.rows.start, group.length - group.start
            count = group.tail if only_last else size
            chosen = group.ends if only_last else group.tokens
            # Query heads that share a key/value head are treated as further positions.
            queries = rearrange(
                q[chosen], "(row pos) (kv group) d -> row kv (group pos) d", row=n, group=per_kv
            )
            first, tree = group.length - count, group.branches
            allowed = allowed_pairs(
                first, group.length, attn.window, per_kv, str(self.device), tree
            )
            mask = score_mask(attn, allowed, group.length, count, tree)
            sink = sink_of(attn, count)
            if patterns is None and base is not None and group.start > size:
                mixed = self._after_prefix(layer, queries, k, v, group, layout, base, mask, sink)
                z[chosen] = rearrange(
                    mixed, "kv row (group pos) d -> (row pos) (kv group) d", pos=count
                )
                continue
            keys, values = (
                self._with_prefix(layer, name, part, group, layout, base)
                for name, part in (("k_rot", k), ("v", v))
            )
            if patterns is None and attn.plain:
                mixed = F.scaled_dot_product_attention(
                    queries, keys, values, attn_mask=mask, scale=attn.scale
                )
            else:
                pattern = attention_pattern(attn, queries, keys, mask, sink)
                mixed = pattern @ values
                if patterns is not None:
                    shaped = pattern.view(n, attn.n_heads, count, group.length)
                    patterns[chosen, :, : group.length] = shaped.transpose(1, 2).flatten(0, 1)
            z[chosen] = rearrange(
                mixed, "row kv (group pos) d -> (row pos) (kv group) d", pos=count
            )
        return z

    def _after_prefix(
        self,
        layer: int,
        queries: Tensor,
        k: Tensor,
        v: Tensor,
        group: RowGroup,
        layout: Layout,
        base: Baseline,
        mask: Tensor | None,
        sink: Tensor | None,
    ) -> Tensor:
        """Site z of short rows after a long prefix, (kv, rows, queries, d).

        The keys and values of the prefix are not copied: all rows of a prompt read the stored ones.
        `queries` are (rows, kv, queries, d).
        """
        attn, start = self.decoder.blocks[layer].attn, group.start
        queries = queries.transpose(0, 1).contiguous()
        own_k, own_v = (
            part[group.tokens].unflatten(0, (queries.shape[1], -1)).permute(2, 0, 1, 3)
            for part in (k, v)
        )
        k_rot, values = base.sites[layer, "k_rot"], base.sites[layer, "v"]
        prompts = layout.prompts(group)
        scores = queries.new_empty(*queries.shape[:-1], group.length)
        for rows, begin in prompts:
            there = k_rot[begin : begin + start].permute(1, 2, 0)
            scores[:, rows, :, :start] = (queries[:, rows].flatten(1, 2) @ there).unflatten(
                1, (-1, queries.shape[2])
            )
        scores[..., start:] = queries @ own_k.transpose(-1, -2)
        # Heads come before rows here.
        mask = mask[:, None] if mask is not None and mask.dim() > 2 else mask
        pattern = _weights(attn, scores, mask, None if sink is None else sink[:, None])
        mixed = pattern[..., start:] @ own_v
        for rows, begin in prompts:
            there = values[begin : begin + start].transpose(0, 1)
            part = pattern[:, rows, :, :start].flatten(1, 2) @ there
            mixed[:, rows] += part.unflatten(1, (-1, queries.shape[2]))
        return mixed

    def _with_prefix(
        self,
        layer: int,
        name: str,
        own: Tensor,
        group: RowGroup,
        layout: Layout,
        base: Baseline | None,
    ) -> Tensor:
        """Keys or values from position 0 on, (rows, kv heads, positions, d_head)."""
        n = group.rows.stop - group.rows.start
        suffix = own[group.tokens].view(n, -1, *own.shape[1:])
        if group.start > 0:
            assert base is not None
            index = layout.offset[group.rows][:, None] + np.arange(group.start)
            prefix = base.at(layer, name, torch.from_numpy(index).to(own.device))
            suffix = torch.cat([prefix, suffix], dim=1)
        return suffix.transpose(1, 2)

    # -- whole blocks ----------------------------------------------------------------------

    def block(
        self,
        layer: int,
        x: Tensor,
        layout: Layout,
        *,
        base: Baseline | None = None,
        edits: Sequence[SiteEdit] = (),
        capture: dict[str, Tensor] | None = None,
        patterns: bool = False,
        experts: bool = False,
        only_last: bool = False,
        heads: Tensor | None = None,
    ) -> Tensor:
        """resid_post of rows whose resid_pre is `x`.

        All sites are stored in `capture`, if given: the pattern only with `patterns`, and the sites
        of experts only with `experts`.

        With `only_last`, only the tail of each row is returned, its last token unless it has
        branches: in the last layer the other tokens matter only through their keys and values.
        Edits may then change resid_pre, q, k and v only. With `heads`, site z is given, and no
        attention is computed.
        """

        def edited(site: str, value: Tensor) -> Tensor:
            for edit in edits:
                if edit.site == site:
                    value = edit.apply(value, layout)
            if capture is not None:
                capture[site] = value
            return value

        block = self.decoder.blocks[layer]
        x = edited("resid_pre", x)
        experts = experts or any(edit.site in EXPERT_SITES for edit in edits)
        if heads is not None:
            return self.after_heads(block, x, heads, edited, capture, experts=experts)
        attn, read, positions = block.attn, normed(block.ln1, x), layout.positions
        first = only_last and not any(edit.site == "q" for edit in edits)
        ends = layout.ends.to(self.device)
        q = edited("q", self.project(block, "q", read[ends] if first else read))
        k, v = (edited(which, self.project(block, which, read)) for which in ("k", "v"))
        if only_last:
            q, x = q if first else q[ends], x[ends]
        q = self.rotated(attn, "q", q, positions[layout.ends] if only_last else positions)
        k = self.rotated(attn, "k", k, positions)
        filled = None
        if patterns:
            filled = q.new_zeros(len(q), attn.n_heads, int(layout.length.max()))
        z = self.attention(layer, q, k, v, layout, base, only_last=only_last, patterns=filled)
        if capture is not None:
            capture["k_rot"] = k
            if filled is not None:
                capture["pattern"] = filled
        return self.after_heads(block, x, z, edited, capture, experts=experts)

    def after_heads(
        self,
        block: Block,
        x: Tensor,
        z: Tensor,
        edited: Callable[[str, Tensor], Tensor],
        capture: dict[str, Tensor] | None = None,
        *,
        experts: bool = False,
    ) -> Tensor:
        """resid_post of tokens from their resid_pre `x` and site z, each (tokens, ...).

        `edited(site, value)` gives the value with which a site continues. It is asked for the sites
        of experts only with `experts`, because they take the memory of as many MLPs.
        """
        attn_raw = block.attn.o(edited("z", z).flatten(1))
        attn_out = edited("attn_out", normed(block.ln1_post, attn_raw))
        before = x if block.parallel else edited("resid_mid", x + attn_out)
        read = edited("read", before.view_as(before))
        if isinstance(block.mlp, Experts) and experts:
            entering = normed(block.ln2, read)
            logits = edited("router", block.mlp.router(entering))
            written = block.mlp.each(entering, block.mlp.weights(logits))
            mlp_raw = edited("expert_out", written).sum(1)
        elif isinstance(block.mlp, Experts):
            mlp_raw = block.mlp.write(normed(block.ln2, read))
        else:
            mlp_raw = block.mlp.down(edited("post", self.mlp_post(block, read, capture)))
        out = edited("mlp_out", normed(block.ln2_post, mlp_raw))
        if capture is not None:
            capture["attn_raw"], capture["mlp_raw"] = attn_raw, mlp_raw
        return edited("resid_post", x + attn_out + out if block.parallel else before + out)
