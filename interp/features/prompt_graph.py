"""How the features of one prompt act on one another and on the next token, in a straight line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.errors import InterpError
from interp.core.files import json_text, write_atomically
from interp.core.positions import Prompt
from interp.core.schema import Brief, Count, checked
from interp.engine.architecture import Decoder
from interp.engine.memory import says_too_little
from interp.features.dictionary import MLP_READS, Dictionary
from interp.models.language_model import LanguageModel
from interp.plots.style import visible
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache

if TYPE_CHECKING:
    from pandas import DataFrame

READ_TOGETHER = 64
"""Targets that are traced back together."""
STREAM = ("resid_pre", "resid_mid")
"""Sites of the stream that a transcoder may read, besides `MLP_READS`."""


@dataclass(frozen=True, kw_only=True)
class AttributionNode(Brief):
    """A part of the run at one token.

    Attributes:
        kind: "embedding", "feature", "error" or "logit".
        layer: its layer; -1 for an embedding, the number of layers for a logit.
        position: its token.
        index: the feature, the token of an embedding or a logit, -1 for an error.
        value: activation of a feature; of a logit, its height above the mean logit.
        rest: what it reads minus all edges into it: the biases, which are no node, and what is not
            in the graph. 0 for embeddings and errors.
        influence: how much of the logits comes through it, by the shares of its edges.
        words: the token of an embedding or a logit.
    """

    kind: str
    layer: int
    position: int
    index: int
    value: float = 0.0
    rest: float = 0.0
    influence: float = 0.0
    words: str = ""

    @property
    def label(self) -> str:
        """Its name, such as L5F120 @ 3."""
        names = {"embedding": f"embedding {self.words}", "logit": f"logit {self.words}"}
        named = names.get(self.kind, f"L{self.layer}F{self.index}")
        return f"{f'L{self.layer} error' if self.kind == 'error' else named} @ {self.position}"


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionGraph(Tabled):
    """The nodes of one prompt's run, and their direct effects on one another.

    Attributes:
        nodes: embeddings, features, errors and logits, by layer and token.
        weights: (n, n) edge from node j into node i, in units of i's value.
        probabilities: of the logits' tokens.
        model, model_hash, prompt, tokens: of the run.
        dictionaries: their names.
    """

    nodes: tuple[AttributionNode, ...]
    weights: np.ndarray
    probabilities: tuple[float, ...]
    model: str
    model_hash: str
    prompt: str
    tokens: tuple[str, ...]
    dictionaries: tuple[str, ...]

    def __repr__(self) -> str:
        kinds = [one.kind for one in self.nodes]
        counted = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in dict.fromkeys(kinds))
        return f"AttributionGraph({self.model}, {len(self.tokens)} tokens: {counted})"

    def to_dataframe(self) -> DataFrame:
        """One row per edge, the largest first, either way."""
        from pandas import DataFrame

        into, source = np.nonzero(self.weights)
        order = np.argsort(-abs(self.weights[into, source]), kind="stable")
        rows = [
            {"source": self.nodes[j].label, "target": self.nodes[i].label,
             "weight": float(self.weights[i, j])}
            for i, j in zip(into[order].tolist(), source[order].tolist(), strict=True)
        ]  # fmt: skip
        return DataFrame(rows, columns=["source", "target", "weight"])

    def strongest(self, most: int) -> AttributionGraph:
        """The same graph with the most influential features and errors, and all other nodes.

        What the others do is in `rest`, which is computed anew.

        Raises:
            InterpError: `most` is no positive whole number.
        """
        most = checked(Count, most, "the nodes of an attribution graph")
        inner = [i for i, one in enumerate(self.nodes) if one.kind in ("feature", "error")]
        inner.sort(key=lambda i: -self.nodes[i].influence)
        kept = sorted({*range(len(self.nodes))} - {*inner[most:]})
        weights = self.weights[np.ix_(kept, kept)]
        lost = self.weights[kept].sum(1) - weights.sum(1)
        nodes = tuple(
            replace(self.nodes[i], rest=self.nodes[i].rest + float(gone))
            for i, gone in zip(kept, lost, strict=True)
        )
        return replace(self, nodes=nodes, weights=weights)

    def save(self, path: str | Path, *, name: str = "interp") -> Path:
        """Write the JSON that the front ends of circuit-tracer and Neuronpedia open.

        Args:
            path: a .json file.
            name: the name under which they list it.

        Raises:
            InterpError: the file cannot be written.
        """
        text = json_text(self._public(name), indent=1)
        target = Path(path)
        write_atomically(target, lambda part: part.write_text(text))
        return target

    def _public(self, name: str) -> dict[str, Any]:
        """The fields of circuit-tracer's `frontend/graph_models.py`, schema 1."""
        layers = max(one.layer for one in self.nodes)
        ids, rows = [], []
        chances = iter(self.probabilities)
        order = np.argsort([-one.influence for one in self.nodes], kind="stable")
        total = sum(one.influence for one in self.nodes) or 1.0
        reached = np.zeros(len(order))
        reached[order] = np.cumsum([self.nodes[i].influence for i in order]) / total
        for one, cumulated in zip(self.nodes, reached.tolist(), strict=True):
            place = {"embedding": "E", "logit": str(layers + 1)}.get(one.kind, str(one.layer))
            ids.append(f"{place}_{one.index}_{one.position}")
            logit = one.kind == "logit"
            rows.append(
                {
                    "node_id": ids[-1],
                    "feature": _numbered(one),
                    "layer": place,
                    "ctx_idx": one.position,
                    "feature_type": KINDS[one.kind],
                    "token_prob": next(chances) if logit else 0.0,
                    "is_target_logit": logit and not any(r["is_target_logit"] for r in rows),
                    "run_idx": 0,
                    "reverse_ctx_idx": 0,
                    "jsNodeId": _shown_id(one),
                    "clerp": one.label if one.kind != "feature" else "",
                    "influence": None if logit else cumulated,
                    "activation": one.value if one.kind == "feature" else None,
                }
            )
        return {
            "metadata": {
                "slug": name,
                "scan": self.model,
                "transcoder_list": list(self.dictionaries),
                "prompt_tokens": list(self.tokens),
                "prompt": self.prompt,
                "node_threshold": None,
                "schema_version": 1,
            },
            "qParams": {
                "pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "",
                "sg_pos": "",
            },
            "nodes": rows,
            "links": [
                {"source": ids[j], "target": ids[i], "weight": float(self.weights[i, j])}
                for i, j in np.argwhere(self.weights).tolist()
            ],
        }  # fmt: skip


KINDS = {
    "embedding": "embedding",
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "logit": "logit",
}
"""How the public format names the kinds of nodes."""


def _numbered(one: AttributionNode) -> int:
    """The number of a node in the public format; layer and feature share one (Cantor)."""
    if one.kind == "feature":
        both = one.layer + one.index
        return both * (both + 1) // 2 + one.index
    return one.position if one.kind == "embedding" else one.index


def _shown_id(one: AttributionNode) -> str:
    place = {"embedding": "E", "logit": "L"}.get(one.kind, str(one.layer))
    return f"{place}_{one.index}-{0 if one.kind == 'feature' else one.position}"


@reads_arguments
@says_too_little
def attribution_graph(
    model: LanguageModel,
    prompt: Prompt,
    dictionaries: Dictionary | Sequence[Dictionary],
    *,
    logits: int = 3,
    most: int = 1000,
) -> AttributionGraph:
    """The direct effects between the features of one prompt, and on its next token.

    In one run, with attention patterns and the scales of norms frozen, everything that is read from
    the residual stream is linear in what was written to it. With g_t the gradient of a target t on
    the stream, a source that writes v at a layer and token has the edge

        weight(s -> t) = v . g_t(layer, token)

    Targets are the active features of every dictionary, by what their encoder reads (before the
    bias and the activation), and the likeliest next tokens, by their logit minus the mean of all
    logits, before a soft cap. Sources are the embedding of each token; a_f W_dec[f] of each active
    feature; and the error, the rest of each MLP's output. The output of an MLP without a dictionary
    is one error. No path goes through an MLP, because its output is a source. All edges into a
    target and the biases, which are no node, add up to what it reads: `AttributionNode.rest` holds
    the biases.

    The influence of a node is circuit-tracer's: the entries |weight| of a row are divided by their
    sum, and influence = p (A + A A + ...), with p the probabilities of the logits.

    Args:
        model: a model with a fast engine.
        prompt: one text, or token ids.
        dictionaries: transcoders that write mlp_out, one a layer. A linear skip counts as error.
        logits: how many of the likeliest next tokens.
        most: the most features and errors; with more, the most influential are kept, and `rest`
            holds what is left out.

    Raises:
        InterpError: no fast engine, a dictionary of another site or model, or two of one layer.

    Source: Ameisen et al. 2025, "Circuit tracing"; edges, influence and file as in circuit-tracer.
    Departures: layers without a dictionary are allowed, and patterns are never nodes.
    """
    given: list[Dictionary] = listed(dictionaries)
    by_layer = _checked(model, given)
    decoder = model.require_decoder("an attribution graph")
    tokenized = model.tokenize(prompt)
    sites = ["resid_pre", "resid_mid", "resid_post", "pattern", "z", "mlp_out"]
    sites = [site for site in sites if site != "resid_mid" or not model.parallel]
    seen = run_with_cache(model, [tokenized.tokens], sites=sites)
    run = {at: value[0].double() for at, value in seen.values.items()}
    trace = _Trace(
        model=model, decoder=decoder, dictionaries=by_layer, tokens=tokenized.tokens, run=run
    )
    return trace.graph(checked(Count, logits, "the logits of a graph")).strongest(most)


def _checked(model: LanguageModel, given: Sequence[Dictionary]) -> dict[int, Dictionary]:
    """The dictionaries by layer."""
    for one in given:
        if not isinstance(one, Dictionary):
            raise InterpError("an attribution graph", f"{one!r:.60}", "give Dictionary objects")
        one.require_model(model)
        if one.written != "mlp_out" or one.read not in (*MLP_READS, *STREAM):
            found = f"it reads {one.read} and writes {one.written}"
            raise InterpError(f"{one!r:.60} in a graph", found, "give transcoders of mlp_out")
    found = {one.layer: one for one in given}
    if not given or len(found) < len(given):
        layers = ", ".join(str(one.layer) for one in given) or "none"
        raise InterpError("an attribution graph", f"layers {layers}", "give one transcoder a layer")
    return found


class _Target(NamedTuple):
    """A node that is traced back, what it reads of the stream at its token, and how much."""

    node: AttributionNode
    reader: Tensor
    read: float


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """One run, in float64, whose targets are traced back to their sources."""

    model: LanguageModel
    decoder: Decoder
    dictionaries: Mapping[int, Dictionary]
    tokens: tuple[int, ...]
    run: Mapping[tuple[int, str], Tensor]

    def graph(self, logits: int) -> AttributionGraph:
        """Every node and every edge."""
        model, strings = self.model, self.model.strings(self.tokens)
        features = {at: self._features(one) for at, one in self.dictionaries.items()}
        outs, chances = self._logits(logits)
        sources = [
            (AttributionNode(
                kind="embedding", layer=-1, position=i, index=token, words=visible(text)
            ), self.run[0, "resid_pre"][i])
            for i, (token, text) in enumerate(zip(self.tokens, strings, strict=True))
        ]  # fmt: skip
        for layer in range(model.n_layers):
            errors = self.run[layer, "mlp_out"].clone()
            for target in features.get(layer, ()):
                node = target.node
                row = self.dictionaries[layer].W_dec[node.index].to(errors) * node.value
                errors[node.position] -= row
                sources.append((node, row))
            sources += [
                (AttributionNode(kind="error", layer=layer, position=i, index=-1), row)
                for i, row in enumerate(errors)
            ]
        targets = [*(one for found in features.values() for one in found), *outs]
        nodes = [*(node for node, _ in sources), *(one.node for one in outs)]
        number = {node: i for i, node in enumerate(nodes)}
        weights, rests = np.zeros((len(nodes), len(nodes))), np.zeros(len(nodes))
        for start in range(0, len(targets), READ_TOGETHER):
            some = targets[start : start + READ_TOGETHER]
            rows = [number[one.node] for one in some]
            weights[rows, : len(sources)] = self._edges(some, sources)
            rests[rows] = [one.read for one in some] - weights[rows].sum(1)
        influence = _influence(weights, [number[one.node] for one in outs], chances)
        return AttributionGraph(
            nodes=tuple(
                replace(node, rest=float(rests[i]), influence=float(influence[i]))
                for i, node in enumerate(nodes)
            ),
            weights=weights,
            probabilities=tuple(chances),
            model=model.name,
            model_hash=model.hash,
            prompt="".join(strings),
            tokens=tuple(strings),
            dictionaries=tuple(one.name or f"layer {at}" for at, one in self.dictionaries.items()),
        )

    def _features(self, one: Dictionary) -> list[_Target]:
        """The active features of a dictionary."""
        stream = self.run[one.layer, one.source(self.model)]
        read = one.what_is_read(self.decoder, stream.to(self.decoder.unembed))
        norm = self.decoder.blocks[one.layer].ln2 if one.read in MLP_READS else None
        activations, found = one.encode(read), []
        for position, feature in activations.nonzero().tolist():
            encoder = one.W_enc[:, feature].double()
            node = AttributionNode(
                kind="feature", layer=one.layer, position=position, index=feature,
                value=float(activations[position, feature]),
            )  # fmt: skip
            reader = encoder
            if norm is not None:
                inner = encoder / norm.weight if one.read == "mlp_normed" else encoder
                reader = norm.reader(stream[position], inner)
            found.append(_Target(node, reader, float(read[position].double() @ encoder)))
        return found

    def _logits(self, k: int) -> tuple[list[_Target], list[float]]:
        """The likeliest next tokens, and their probabilities."""
        last, decoder = self.model.n_layers, self.decoder
        final, unembed = self.run[last - 1, "resid_post"][-1], decoder.unembed.double()
        normed = decoder.ln_final(final.to(decoder.unembed)[None])
        chances = decoder.logits(normed)[0].double().softmax(-1)
        tokens = chances.topk(k).indices.tolist()
        bias = torch.zeros(1) if decoder.unembed_bias is None else decoder.unembed_bias
        heights = normed[0].double() @ unembed.T + bias
        heights = heights - heights.mean()
        found = []
        for token, text in zip(tokens, self.model.strings(tokens), strict=True):
            height = float(heights[token])
            node = AttributionNode(
                kind="logit", layer=last, position=len(self.tokens) - 1, index=token,
                value=height, words=visible(text),
            )  # fmt: skip
            direction = unembed[token] - unembed.mean(0)
            found.append(_Target(node, decoder.ln_final.reader(final, direction), height))
        return found, [float(chances[token]) for token in tokens]

    def _edges(
        self, targets: Sequence[_Target], sources: Sequence[tuple[AttributionNode, Tensor]]
    ) -> np.ndarray:
        """(targets, sources) the edges into some targets, layer by layer from the last."""
        edges = np.zeros((len(targets), len(sources)))
        gradient = torch.zeros(len(targets), len(self.tokens), self.decoder.d_model).double()
        for layer in range(self.model.n_layers, -2, -1):
            written = [i for i, (node, _) in enumerate(sources) if node.layer == layer]
            if written:
                rows = torch.stack([sources[i][1] for i in written])
                at = gradient[:, [sources[i][0].position for i in written]]
                edges[:, written] = torch.einsum("tsd,sd->ts", at, rows).numpy()
            own = [i for i, one in enumerate(targets) if one.node.layer == layer]
            later = layer in self.dictionaries and self._reads_before_attention(layer)
            if not later:
                self._begin(gradient, targets, own)
            if 0 <= layer < self.model.n_layers:
                gradient = gradient + self._through_attention(gradient, layer)
            if later:
                self._begin(gradient, targets, own)
        return edges

    def _reads_before_attention(self, layer: int) -> bool:
        return self.dictionaries[layer].source(self.model) == "resid_pre"

    @staticmethod
    def _begin(gradient: Tensor, targets: Sequence[_Target], own: Sequence[int]) -> None:
        """Add what targets read of the stream, where it is read."""
        for i in own:
            gradient[i, targets[i].node.position] += targets[i].reader

    def _through_attention(self, gradient: Tensor, layer: int) -> Tensor:
        """The gradient on resid_pre through a layer's heads, with pattern and scales frozen."""
        block, z = self.decoder.blocks[layer], self.run[layer, "z"]
        attn = block.attn
        if block.ln1_post is not None:
            whole = attn.o(z.flatten(1).to(attn.o.weight))
            gradient = block.ln1_post.reader(whole, gradient)
        heads = torch.einsum("tqd,hed->tqhe", gradient, attn.W_O.double())
        read = torch.einsum("qhk,tqhe->tkhe", self.run[layer, "pattern"], heads)
        values = read.unflatten(2, (attn.n_kv_heads, -1)).sum(3).flatten(2)
        back = values @ attn.v.weight.double().T
        if block.ln1 is None:
            return back
        return block.ln1.reader(self.run[layer, "resid_pre"], back)


def _influence(weights: np.ndarray, logits: list[int], chances: Sequence[float]) -> np.ndarray:
    """(n,) how much of the logits comes through each node."""
    sizes = abs(weights)
    total = sizes.sum(1, keepdims=True)
    shares = np.divide(sizes, total, where=total > 0, out=np.zeros_like(sizes))
    through, found = np.zeros(len(weights)), np.zeros(len(weights))
    through[logits] = chances
    while (through := through @ shares).any():  # edges go up only, so this ends
        found += through
    return found
