"""One prompt looked at from every side: tokens, predictions, lens, attention, parts, neurons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.core.arguments import reads_arguments
from interp.core.components import Component, within
from interp.core.continuations import GivenAnswer
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.schema import Count, checked
from interp.engine.architecture import normed
from interp.heads.attention_keys import ENTROPY, ROLES, wanted_keys
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Token, Unembedded, likeliest, unembed
from interp.neurons.firing import NeuronFiring, neuron_firing
from interp.overview.logit_parts import LogitParts, chosen_answers, logit_parts
from interp.overview.single_run import SingleRun, run_once
from interp.plots.tables import Listing, Tabled
from interp.probing.lens import Lens, lens_of_tokens
from interp.results.direction import Direction

if TYPE_CHECKING:
    from pandas import DataFrame

HEAD_METRICS = ("to chosen token", *ROLES, ENTROPY)
"""What `Look.head_attention` measures, for every head."""

NEURON_ORDERS = ("attribution", "activation", "answer", "foil", "direction")
"""What `Look.neurons` orders neurons by."""

MOST_GB = 2.0
"""Memory for attention patterns."""


@dataclass(frozen=True, kw_only=True)
class WritingNeuron:
    """A neuron, what it adds to the logit difference in logits, and the tokens it writes.

    Attributes:
        component: the neuron.
        activation: its activation (site post) at the token that is read.
        value: what it adds to the logit difference, in logits.
        score: what the neurons are ordered by: see `Look.neurons`.
        null: the absolute score beside those of the other neurons of its layer. A rank, not a
            p-value, because the neuron was selected.
        writes: the tokens that its output weights raise and lower most, at a positive activation.
    """

    component: Component
    activation: float
    value: float
    score: float
    null: Null | None
    writes: Unembedded

    @property
    def label(self) -> str:
        """Its label, such as L24N1005."""
        return str(self.component)

    @property
    def here(self) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
        """The tokens it raises and lowers most at this activation, whose sign counts."""
        raises, lowers = self.writes.promoted, self.writes.suppressed
        return (raises, lowers) if self.activation > 0 else (lowers, raises)


@dataclass(frozen=True, kw_only=True, eq=False)
class Look(Tabled):
    """Readings of one run of one prompt; each is computed when it is asked for.

    Attributes:
        run: the run.
        answer, wrong: what is compared in `attribution`, `neurons` and `lens`, if not the likeliest
            next token and the runner-up.
    """

    run: SingleRun
    answer: GivenAnswer | None = None
    wrong: GivenAnswer | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """The text of every token of the prompt."""
        return self.run.prompt.strings

    def __repr__(self) -> str:
        shown = ", ".join(f"{token.label} {token.value:z.2f}" for token in self.next_tokens(3))
        return f"Look({self.run.model.name}, {self.run.n_tokens} tokens; next: {shown})"

    def to_dataframe(self) -> DataFrame:
        """The likeliest next tokens, one row each."""
        return self.next_tokens().to_dataframe()

    @reads_arguments
    def next_tokens(self, k: int = 10, *, position: int = -1) -> Listing[Token]:
        """The k likeliest next tokens after a token of the prompt, with their probabilities."""
        run, place = self.run, self.run.place(position)
        k = checked(Count, k, "the likeliest next tokens")
        with torch.no_grad():
            hidden = run.decoder.ln_final(run.final(place)[None])
            return likeliest(run.model, run.decoder.logits(hidden)[0], k)

    @reads_arguments
    def attribution(self, *, position: int = -1) -> LogitParts:
        """What every part adds to the logit difference: `direct_attribution` of this run."""
        return logit_parts(self.run, self.answer, self.wrong, position=position)

    @cached_property
    def lens(self) -> Lens:
        """The logit lens at every layer (resid_post) and token; watches both first tokens."""
        run, parts = self.run, self.attribution()
        layers, ids = tuple(range(run.model.n_layers)), [parts.answer, parts.wrong]
        texts = run.model.strings(ids)
        alike = texts[0] == texts[1] and ids[0] != ids[1]  # two tokens of one text need their ids
        words = dict(zip(ids if alike else texts, ids, strict=True))
        states = (run.after(layer) for layer in layers)
        return lens_of_tokens(run.model, run.prompt, states, layers=layers, words=words)

    @reads_arguments
    def pattern(self, layer: int, head: int) -> np.ndarray:
        """(query, key) the attention of one head; a row sums to 1 minus the share of its sink."""
        model = self.run.model
        within([layer], model.n_layers, "layer", model.name)
        within([head], model.n_heads, "head", model.name)
        self._require_room(model.n_heads)
        with torch.no_grad():
            return self.run.pattern(layer)[head].float().cpu().numpy()

    def sink(self, layer: int, head: int) -> np.ndarray | None:
        """(query,) the share of attention that goes to a head's sink; None without a sink."""
        pattern = self.pattern(layer, head)
        if self.run.decoder.blocks[layer].attn.sinks is None:
            return None
        return np.clip(1 - pattern.sum(-1), 0, None)

    @cached_property
    def patterns(self) -> np.ndarray:
        """(layer, head, query, key) the attention of all heads.

        Raises:
            InterpError: a long prompt, whose patterns take more than `MOST_GB`.
        """
        model = self.run.model
        self._require_room(model.n_layers * model.n_heads)
        with torch.no_grad():
            layers = [self.run.pattern(layer) for layer in range(model.n_layers)]
            return torch.stack(layers).float().cpu().numpy()

    def _require_room(self, heads: int) -> None:
        """Refuse patterns of so many heads that are too large."""
        n = self.run.n_tokens
        if (size := heads * n * n * 4 / 1e9) > MOST_GB:
            raise InterpError(
                f"the attention of {heads} heads on a prompt of {n} tokens",
                f"{size:z.1f} GB, over {MOST_GB:g} GB",
                "give a shorter prompt",
            )

    @reads_arguments
    def head_attention(
        self, metric: str = "to chosen token", *, token: int = 0, position: int = -1
    ) -> np.ndarray:
        """(layer, head) one measure of each head's attention on this prompt.

        "to chosen token": weight from the token at `position` to `token`. The measures of
        `interp.heads.attention_keys.wanted_keys`, such as "to previous token": mean weight over all
        queries that can have such a key. "entropy": mean over queries of - sum p ln p, in nats,
        over keys and a sink.

        Raises:
            InterpError: an unknown metric, a token that is not there, or a prompt in which no query
                has such a key.
        """
        patterns = self.patterns
        if metric not in HEAD_METRICS:
            raise unknown("metric of attention", metric, HEAD_METRICS)
        if metric == "to chosen token":
            return patterns[:, :, self.run.place(position), self.run.place(token)]
        if metric == ENTROPY:
            if any(block.attn.sinks is not None for block in self.run.decoder.blocks):
                rest = np.clip(1 - patterns.sum(-1, keepdims=True), 0, None)
                patterns = np.concatenate([patterns, rest], -1)
            logs = np.log(np.where(patterns > 0, patterns, 1.0))
            return -(patterns * logs).sum(-1).mean(-1)
        wanted = self.keys(metric)
        queries = wanted.any(1)
        if not queries.any():
            raise InterpError(
                f"attention {metric}",
                "no token of this prompt has one",
                "use a longer prompt, for copies one in which a word occurs twice",
            )
        return (patterns * wanted).sum(-1)[:, :, queries].mean(-1)

    def keys(self, metric: str) -> np.ndarray:
        """(query, key) whether a key counts in `head_attention`, of metrics "to ... token"."""
        return wanted_keys(self.run.prompt.tokens, metric)

    @cached_property
    def norms(self) -> np.ndarray:
        """(layer + 1, token) the length of the residual stream before each layer and at the end."""
        sites, n = self.run.sites, self.run.model.n_layers
        stream = torch.stack([sites[layer, "resid_pre"].float() for layer in range(n + 1)])
        return stream.norm(dim=-1).cpu().numpy()

    @reads_arguments
    def neurons(
        self,
        k: int = 10,
        *,
        position: int = -1,
        words: int = 5,
        by: str = "attribution",
        foil: Look | None = None,
        layer: int | None = None,
        direction: Direction | None = None,
    ) -> Listing[WritingNeuron]:
        """The k neurons with the largest score, either way, and what they write.

        They are those of all layers, or of one `layer`.

        The score of neuron i, with output weights v_i (times the weight of a norm behind the MLP),
        is by

            "attribution":  post_i v_i . r, what it adds to the logit difference, in logits
            "activation":   post_i
            "answer":       cos(v_i, w_final * (W_U[answer] - W_U[wrong])), summed over tokens
            "foil":         cos(v_i, resid_post of the prompt - resid_post of the foil), per layer
            "direction":    cos(v_i, a direction of the residual stream), in every layer

        r is the final norm (and the norm behind the MLP) linearised at this run, times the
        difference of the two unembedding rows: attributions of a layer add up to its MLP's, without
        a bias. An answer of several tokens sums its tokens' attributions; activations are those at
        `position`. The foil is read at the token as far from its end as `position`.

        Raises:
            InterpError: an unknown order, "foil" without a foil, "direction" without one of this
                model, a token or layer that is not there, or k out of range.
        """
        model, parts = self.run.model, self.attribution(position=position)
        if layer is not None:
            within([layer], model.n_layers, "layer", model.name)
        k = checked(Count, k, "the strongest neurons")
        values = torch.stack([parts.neurons(at) for at in range(model.n_layers)])
        scores = values if by == "attribution" else self._scores(by, parts, foil, direction)
        first, ranked = (0, scores) if layer is None else (layer, scores[[layer]])
        order = ranked.abs().flatten().topk(min(k, ranked.numel())).indices
        places = (divmod(int(at), scores.shape[1]) for at in order)
        found = [(first + below, index) for below, index in places]
        weights = torch.stack([self._output(at)[index] for at, index in found])
        written = unembed(model, weights, k=words, norm=True)
        sizes = scores.abs().cpu().numpy()
        rows = [
            WritingNeuron(
                component=Component(at, "post", index),
                activation=float(self.run.sites[at, "post"][parts.position, index]),
                value=float(values[at, index]),
                score=float(scores[at, index]),
                null=null_of(float(sizes[at, index]), others) if len(others) else None,
                writes=tokens,
            )
            for (at, index), tokens in zip(found, written, strict=True)
            for others in [np.delete(sizes[at], index)]
        ]
        return Listing(rows, "logits")

    def firing(self, neuron: str) -> NeuronFiring:
        """Where one neuron, such as "L25N100", fires on this prompt: see `neuron_firing`.

        Raises:
            InterpError: no such neuron.
        """
        model, run = self.run.model, self.run
        if run.changed:
            return neuron_firing(model, [run.prompt.tokens], neuron)[0]
        (part,) = model.require_parts([neuron], "post")
        block, at = run.decoder.blocks[part.layer], (part.layer, "post")
        with torch.no_grad():
            read = run.sites[part.layer, "resid_pre"]
            read = read if block.parallel else read + run.sites[part.layer, "attn_out"]
            read = normed(block.ln2, read)
            gate, up = (
                None if of is None else of(read)[:, part.index].float().cpu().numpy()
                for of in (block.neurons.gate, block.neurons.up)
            )
        activation = run.sites[at][:, part.index].float().cpu().numpy()
        assert gate is not None
        return NeuronFiring(tokens=self.tokens, activation=activation, gate=gate, up=up)

    def _scores(
        self, by: str, parts: LogitParts, foil: Look | None, direction: Direction | None
    ) -> torch.Tensor:
        """(layer, neuron) the score of every neuron, other than its attribution."""
        run, place, layers = self.run, parts.position, range(self.run.model.n_layers)
        if by not in NEURON_ORDERS:
            raise unknown("order of neurons", by, NEURON_ORDERS)
        if by == "activation":
            return torch.stack([run.sites[layer, "post"][place] for layer in layers])
        if by == "answer":
            read = parts.direction.to(run.decoder.unembed) * run.decoder.ln_final.weight
            directions = [read for _ in layers]
        elif by == "direction":
            if direction is None:
                found = "no direction"
                raise InterpError("neurons by direction", found, "give one, such as a kept one")
            direction.require_model(run.model)
            one = direction.vector.to(run.decoder.unembed)
            directions = [one for _ in layers]
        elif foil is None:
            raise InterpError("neurons by foil", "no foil", "give the run of another prompt")
        else:
            other = foil.run.place(place - run.n_tokens)
            directions = [run.after(at)[place] - foil.run.after(at)[other] for at in layers]
        with torch.no_grad():
            rows = [(self._output(at), directions[at][None]) for at in layers]
            return torch.stack([torch.cosine_similarity(out, to, dim=-1) for out, to in rows])

    def _output(self, layer: int) -> torch.Tensor:
        """(neuron, d_model) output weights of a layer, times the weight of a norm behind it."""
        block = self.run.decoder.blocks[layer]
        written = block.neurons.down.weight
        return written if block.ln2_post is None else written * block.ln2_post.weight

    @reads_arguments
    def to_dict(self, *, position: int = -1) -> dict[str, Any]:
        """The readings that fit on a page, as plain numbers and texts, for JSON.

        Next tokens, parts and neurons are those after the token at `position`. The lens watches the
        answer after the last token. A mixture of experts has no neurons.
        """
        parts, lens = self.attribution(position=position), self.lens
        offered = self.run.model.sites["post"] is None
        neurons = self.neurons(position=position) if offered else []
        return {
            "model": self.run.model.name,
            "model_hash": self.run.model.hash,
            "tokens": list(self.tokens),
            "position": parts.position,
            "next_tokens": [token._asdict() for token in self.next_tokens(position=position)],
            "difference": {
                "words": parts.words,
                "logits": parts.logit_difference,
                "sum_of_parts": parts.total,
            },
            "parts": [
                {"part": part.label, "kind": part.kind, "logits": part.value}
                for part in parts.top(len(parts.parts))
            ],
            "neurons": [
                {
                    "neuron": str(neuron.component),
                    "activation": neuron.activation,
                    "logits": neuron.value,
                    "raises": [token.text for token in neuron.here[0]],
                    "lowers": [token.text for token in neuron.here[1]],
                }
                for neuron in neurons
            ],
            "lens": {
                "likeliest": lens.texts,
                "probability": lens.top_mean[0, :, :, 0].tolist(),
                "answer": lens.words[0],
                "answer_rank": lens.word_rank[0, :, :, 0].tolist(),
            },
            "norms": self.norms.tolist(),
        }


@reads_arguments
def look(
    model: LanguageModel,
    prompt: Prompt,
    answer: GivenAnswer | None = None,
    wrong: GivenAnswer | None = None,
    *,
    budget_gb: float = 2.0,
) -> Look:
    """Run one prompt once, for all the readings of `Look`.

    Tokens, next-token distribution, logit lens (layers x tokens), attention of every head, direct
    logit attribution of every head, MLP and token, the strongest neurons with the tokens they
    write, and norms. Each is computed when it is asked for. Inside `intervene` the changed run is
    read. One prompt is one sample: nothing here has an interval. For effects, see `scan`.

    Args:
        model: a model with a fast engine.
        prompt: one text, or token ids.
        answer: what is explained, see `direct_attribution`; the likeliest next token by default.
        wrong: what it is compared with; the likeliest other token by default.
        budget_gb: memory for the run.

    Raises:
        InterpError: no fast engine, an empty prompt or one over the context, answers that are equal
            or that `direct_attribution` does not take, or a run over the budget.
    """
    run = run_once(model, prompt, budget_gb=budget_gb)
    chosen_answers(run, answer, wrong, run.n_tokens - 1)
    return Look(run=run, answer=answer, wrong=wrong)
