"""Direct logit attribution: what every part of a model adds to a logit difference, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.components import within
from interp.core.continuations import GivenAnswer, answer_tokens
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt
from interp.core.schema import Count, Positive, checked
from interp.core.statistics import widened
from interp.engine.architecture import Block, Experts, normed
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, strongest_tokens
from interp.overview.single_run import SingleRun, run_once
from interp.plots.style import visible
from interp.plots.tables import Listing, Tabled

if TYPE_CHECKING:
    from pandas import DataFrame


ROUNDING = 1e-6
"""Biases and changes below this many logits are rounding errors, and are no parts."""

PART_KINDS = ("embedding", "head", "mlp", "bias", "change")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the model and what it adds to the logit difference, in logits."""

    label: str
    kind: str
    layer: int | None
    value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitParts(Tabled):
    """What every part adds to one logit difference of one prompt, in logits; the parts add up.

    Attributes:
        run: the run.
        position: the token after which the logits are read.
        answer, wrong: token ids.
        embedding: the token and position embedding.
        heads: (layer, head) attention heads.
        attention_bias: (layer,) the output bias of attention, and of a norm behind it; inside
            `intervene` also what a change of attn_out adds.
        mlps: (layer,) MLPs.
        changes: (layer,) what interventions on the residual stream behind each layer add; 0 outside
            `intervene`.
        bias: the bias of the final norm.
    """

    run: SingleRun
    position: int
    answer: int
    wrong: int
    embedding: float
    heads: np.ndarray
    attention_bias: np.ndarray
    mlps: np.ndarray
    changes: np.ndarray
    bias: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        parts = (self.heads, self.attention_bias, self.mlps, self.changes)
        return float(sum(part.sum() for part in parts)) + self.embedding + self.bias

    @cached_property
    def logit_difference(self) -> float:
        """The model's own logit difference, before a soft cap of the logits."""
        decoder, run = self.run.decoder, self.run
        hidden = decoder.ln_final(run.final(self.position)[None])
        logits = hidden[0].double() @ decoder.unembed[self._tokens].double().T
        if decoder.unembed_bias is not None:
            logits = logits + decoder.unembed_bias[self._tokens].double()
        return float(logits[0] - logits[1])

    @property
    def words(self) -> str:
        """The logit difference in words."""
        return " - ".join(map(visible, self.run.model.strings(self._tokens)))

    @property
    def direction(self) -> Tensor:
        """(d_model,) float64 unembedding of the answer minus that of the wrong token."""
        return _direction(self.run, self._tokens)

    @property
    def _tokens(self) -> list[int]:
        return [self.answer, self.wrong]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every part, in the order of the model."""
        return tuple(self._parts())

    def _parts(self) -> Iterator[Part]:
        yield Part(label="embedding", kind="embedding", layer=None, value=self.embedding)
        for layer, heads in enumerate(self.heads.tolist()):
            for head, value in enumerate(heads):
                yield Part(label=f"L{layer}H{head}", kind="head", layer=layer, value=value)
            if abs(bias := float(self.attention_bias[layer])) > ROUNDING:
                label = f"L{layer} attention bias"
                yield Part(label=label, kind="bias", layer=layer, value=bias)
            mlp = float(self.mlps[layer])
            yield Part(label=f"L{layer}.mlp_out", kind="mlp", layer=layer, value=mlp)
            if abs(change := float(self.changes[layer])) > ROUNDING:
                label = f"change behind layer {layer}"
                yield Part(label=label, kind="change", layer=layer, value=change)
        if self.bias:
            yield Part(label="final bias", kind="bias", layer=None, value=self.bias)

    def __repr__(self) -> str:
        strongest = ", ".join(f"{part.label} {part.value:+z.2f}" for part in self.top(3))
        return (
            f"{type(self).__name__}({self.words} = {self.logit_difference:+z.3f} logits; "
            f"{len(self.parts)} parts add up to {self.total:+z.3f}; {strongest})"
        )

    @reads_arguments
    def top(self, k: int = 10, *, kind: str | None = None) -> Listing[Part]:
        """The k parts with the largest absolute value; of one kind of `PART_KINDS`, if given.

        Raises:
            InterpError: there is no such kind.
        """
        if kind is not None and kind not in PART_KINDS:
            raise unknown("kind of part", kind, PART_KINDS)
        k = checked(Count, k, "the strongest parts")
        some = [part for part in self.parts if kind in (None, part.kind)]
        return Listing(sorted(some, key=lambda part: -abs(part.value))[:k], "logits")

    def to_dataframe(self) -> DataFrame:
        """One row per part, strongest first."""
        return self.top(len(self.parts)).to_dataframe()

    def by_source(self, layer: int, head: int) -> np.ndarray:
        """(key,) a head's value, divided among the tokens that it reads; they add up to it.

        Inside `intervene`, a change of z belongs to no token.

        Raises:
            InterpError: there is no such layer or head.
        """
        model = self.run.model
        within([layer], model.n_layers, "layer", model.name)
        within([head], model.n_heads, "head", model.name)
        run, attn = self.run, self.run.decoder.blocks[layer].attn
        with torch.no_grad():
            weights = run.pattern(layer)[head, self.position].double()
            v = run.sites[layer, "v"][:, head // (attn.n_heads // attn.n_kv_heads)].double()
            final = _final_reader(run, self.position, self._tokens)
            z = run.sites[layer, "z"][self.position][None]
            (read,) = run.decoder.blocks[layer].head_reader(z, final[None])
        return (weights * (v @ (attn.W_O[head].double() @ read))).cpu().numpy()

    def writes(self, layer: int, head: int, *, k: int = 10) -> Unembedded:
        """The k tokens whose logits a head raises most, and lowers most, at the token read.

        The final norm, and a norm behind attention, are linearised at the run's own stream, so the
        values of two tokens differ by what `heads` says of them. Unit: logits.

        Raises:
            InterpError: there is no such layer or head, or k is out of range.
        """
        model, run = self.run.model, self.run
        within([layer], model.n_layers, "layer", model.name)
        within([head], model.n_heads, "head", model.name)
        with torch.no_grad():
            z, final = run.sites[layer, "z"][self.position], run.final(self.position)
            logits = run.decoder.head_logits(layer, head, z, final)
            return strongest_tokens(model, widened(logits)[None], k)[0]

    def neurons(self, layer: int) -> Tensor:
        """(neuron,) what each neuron of a layer's MLP adds, in logits; its bias belongs to none.

        Inside `intervene`, a change of mlp_out belongs to no neuron.

        Raises:
            InterpError: there is no such layer, or it is a mixture of experts.
        """
        within([layer], self.run.model.n_layers, "layer", self.run.model.name)
        block, run = self.run.decoder.blocks[layer], self.run
        with torch.no_grad():
            down = block.neurons.down
            post = run.sites[layer, "post"][self.position].double()
            raw = down(run.sites[layer, "post"][self.position][None])[0]
            read = _final_reader(run, self.position, self._tokens)
            read = read if block.ln2_post is None else block.ln2_post.reader(raw, read)
            return post * (down.weight.double() @ read)

    def experts(self, layer: int) -> Tensor:
        """(expert,) what each expert of a layer adds, in logits; the sum is the MLP's value.

        It is the expert's output times its routing weight: 0 for experts that the token does not
        use. The last one is the shared expert, if the model has one.

        Raises:
            InterpError: there is no such layer, it is no mixture of experts, or the run is changed.
        """
        model, run = self.run.model, self.run
        within([layer], model.n_layers, "layer", model.name)
        block, asked = run.decoder.blocks[layer], f"the experts of layer {layer}"
        if not isinstance(block.mlp, Experts):
            raise InterpError(asked, "the MLP is not a mixture of experts", "use neurons()")
        if run.changed:
            found = "a changed run does not keep them"
            raise InterpError(asked, found, "use run_with_cache(sites='expert_out') there")
        with torch.no_grad():
            stream = run.sites[layer, "resid_pre"][self.position][None]
            if not block.parallel:
                stream = stream + run.sites[layer, "attn_out"][self.position]
            entering = normed(block.ln2, stream)
            (each,) = block.mlp.each(entering, block.mlp.weights(block.mlp.router(entering)))
            read = _final_reader(run, self.position, self._tokens)
            if block.ln2_post is not None:
                read = block.ln2_post.reader(each.sum(0), read)
            return each.double() @ read

    def plot(self, *, limit: float | None = None) -> Any:
        """A Plotly heat map in logits: layers upwards; heads, then the MLP, across.

        Raises:
            InterpError: a limit that is not above 0.
        """
        from interp.plots.heatmaps import heat_map

        checked(Positive | None, limit, "the limit of a heat map")
        n_layers, n_heads = self.heads.shape
        return heat_map(
            np.concatenate([self.heads, self.mlps[:, None]], axis=1),
            x=[*map(str, range(n_heads)), "MLP"],
            y=[str(layer) for layer in range(n_layers)],
            x_title="head, and the layer's MLP",
            y_title="layer",
            colour_title=f"added to {self.words} (logits)",
            limit=limit,
            names=[
                [*(f"L{layer}H{head}" for head in range(n_heads)), f"L{layer}.mlp_out"]
                for layer in range(n_layers)
            ],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerParts(LogitParts):
    """The parts of an answer of several tokens: every value is the sum over its tokens.

    `run` is of the prompt and the answer without its last token; `position`, `answer` and `wrong`
    are those of the first token, and so are the tokens that a head `writes`.

    Attributes:
        each: the parts of every token of the answer, read behind the tokens before it.
    """

    each: tuple[LogitParts, ...]
    __repr__ = LogitParts.__repr__

    @cached_property
    def logit_difference(self) -> float:
        """The model's own logit differences, summed over the answer's tokens."""
        return sum(one.logit_difference for one in self.each)

    @property
    def words(self) -> str:
        """The two answers in words."""
        sides = [(one.answer for one in self.each), (one.wrong for one in self.each)]
        texts = ("".join(self.run.model.strings(tuple(side))) for side in sides)
        return " - ".join(map(visible, texts))

    @property
    def direction(self) -> Tensor:
        """(d_model,) the sum of the tokens' directions."""
        return torch.stack([one.direction for one in self.each]).sum(0)

    def by_source(self, layer: int, head: int) -> np.ndarray:
        """As `LogitParts.by_source`; the tokens are those of the prompt and of the answer."""
        return np.sum([one.by_source(layer, head) for one in self.each], axis=0)

    def neurons(self, layer: int) -> Tensor:
        """As `LogitParts.neurons`."""
        return torch.stack([one.neurons(layer) for one in self.each]).sum(0)

    def experts(self, layer: int) -> Tensor:
        """As `LogitParts.experts`."""
        return torch.stack([one.experts(layer) for one in self.each]).sum(0)


@reads_arguments
def direct_attribution(
    model: LanguageModel,
    prompt: Prompt,
    answer: GivenAnswer | None = None,
    wrong: GivenAnswer | None = None,
    *,
    position: int = -1,
) -> LogitParts:
    """What every head, every MLP and the embedding add to a logit difference of one prompt.

        logit[answer] - logit[wrong] = sum over parts of u . N(part) + biases
        u = W_U[answer] - W_U[wrong]

    N is the final norm, linearised at the run's own stream, so the parts add up to the logit
    difference (before a soft cap of the logits), up to rounding: within 1e-6 in float32 on the
    default model, within a few tenths of a logit in half precision. A norm behind attention or the
    MLP is linearised likewise. Unit: logits. Positive raises the answer. It measures what is
    written directly: a head that acts through later parts shows little here; see
    `activation_patching`. Inside `intervene` the changed run is read.

    An answer a_1 ... a_k of several tokens is compared with the wrong one token by token, each
    behind the answer's own tokens before it:

        sum over j of logit[a_j] - logit[wrong_j], after the prompt and a_1 ... a_(j-1)

    This is linear in the logits, so the parts add up to it: `AnswerParts`. The normaliser of the
    softmax cancels at every token, so it is log P(answer) minus the log-probabilities of the wrong
    tokens after the right beginnings. It is not log P(answer) - log P(wrong), which no sum over
    parts gives.

    Args:
        model: a model with a fast engine.
        prompt: one text, or token ids.
        answer: a text or token ids; the most likely next token by default.
        wrong: what it is compared with, of as many tokens; by default the likeliest other token,
            at every token of the answer.
        position: the token after which the logits are read; the last by default.

    Raises:
        InterpError: no fast engine, answers that differ in their number of tokens, several tokens
            inside `intervene`, or no such position.

    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits"; with norms
    linearised as in nostalgebraist's and Nanda's logit attribution.
    """
    run = run_once(model, prompt)
    return logit_parts(run, answer, wrong, position=position)


def logit_parts(
    run: SingleRun,
    answer: GivenAnswer | None = None,
    wrong: GivenAnswer | None = None,
    *,
    position: int = -1,
) -> LogitParts:
    """`direct_attribution` of an existing run."""
    place = run.place(position)
    right, others = chosen_answers(run, answer, wrong, place)
    whole = run
    if len(right) > 1:
        whole = run.continued(place, right[:-1])
    if others is None:
        others = tuple(likeliest(whole, place + j, token) for j, token in enumerate(right))
    pairs = zip(right, others, strict=True)
    each = tuple(_token_parts(whole, place + j, *pair) for j, pair in enumerate(pairs))
    if whole is run:
        (one,) = each
        return one
    return AnswerParts(
        run=whole,
        position=place,
        answer=each[0].answer,
        wrong=each[0].wrong,
        embedding=sum(one.embedding for one in each),
        heads=np.sum([one.heads for one in each], axis=0),
        attention_bias=np.sum([one.attention_bias for one in each], axis=0),
        mlps=np.sum([one.mlps for one in each], axis=0),
        changes=np.sum([one.changes for one in each], axis=0),
        bias=sum(one.bias for one in each),
        each=each,
    )


def _token_parts(run: SingleRun, place: int, right: int, other: int) -> LogitParts:
    """What every part adds to the logit difference of two tokens."""
    decoder, tokens = run.decoder, [right, other]
    with torch.no_grad():
        read = _final_reader(run, place, tokens)
        heads, biases, mlps, changes = [], [], [], []
        for layer, block in enumerate(decoder.blocks):
            heads.append(block.head_values(run.sites[layer, "z"][place][None], read[None])[0])
            written = run.sites[layer, "attn_out"][place].double() @ read
            # Without a bias or a change, what is left is the rounding error of the sum over heads.
            rest = written - heads[-1].sum()
            biases.append(rest if run.changed or _has_bias(block) else torch.zeros_like(rest))
            mlps.append(run.sites[layer, "mlp_out"][place].double() @ read)
            before, after = (run.sites[at, "resid_pre"][place] for at in (layer, layer + 1))
            moved = (after.double() - before.double()) @ read - written - mlps[-1]
            changes.append(moved if run.changed else torch.zeros_like(moved))
        norm_bias = decoder.ln_final.bias
        direction = _direction(run, tokens)
        bias = 0.0 if norm_bias is None else float(norm_bias.double() @ direction)
        if decoder.unembed_bias is not None:
            bias += float(decoder.unembed_bias[right] - decoder.unembed_bias[other])
        embedding = float(run.sites[0, "resid_pre"][place].double() @ read)
    return LogitParts(
        run=run,
        position=place,
        answer=right,
        wrong=other,
        embedding=embedding,
        heads=torch.stack(heads).cpu().numpy(),
        attention_bias=torch.stack(biases).cpu().numpy(),
        mlps=torch.stack(mlps).cpu().numpy(),
        changes=torch.stack(changes).cpu().numpy(),
        bias=bias,
    )


def _has_bias(block: Block) -> bool:
    """Whether attention writes something that belongs to no head."""
    norm = block.ln1_post
    return block.attn.o.bias is not None or (norm is not None and norm.bias is not None)


def chosen_answers(
    run: SingleRun, answer: GivenAnswer | None, wrong: GivenAnswer | None, place: int
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The tokens of the answer, the likeliest one by default, and of what it is compared with.

    Raises:
        InterpError: the same tokens twice, tokens unlike in number, or several of a changed run.
    """
    others = None if wrong is None else written(run, wrong, place, "wrong")
    right = None if answer is None else written(run, answer, place, "answer")
    right = (likeliest(run, place),) if right is None else right
    asked = f"answer {answer!r} and wrong {wrong!r}"
    if right == others:
        found = "token" if len(right) == 1 else "tokens"
        shown = "".join(run.model.strings(right))
        raise InterpError(asked, f"both are the {found} {shown!r}", "give two tokens")
    if others is not None and len(others) != len(right):
        raise InterpError(
            asked,
            f"{len(right)} and {len(others)} tokens, which are compared one by one",
            "give a wrong answer of as many tokens, or none: the likeliest other token is then "
            "taken at each. interp.scan compares whole answers of any length",
        )
    if len(right) > 1 and (run.changed or run.model.active):
        found = "the changes would apply to the answer's tokens too"
        raise InterpError(
            f"an answer of {len(right)} tokens inside intervene", found, "give its first token"
        )
    return right, others


def likeliest(run: SingleRun, place: int, without: int | None = None) -> int:
    """The likeliest next token after a position, other than one."""
    with torch.no_grad():
        logits = run.decoder.logits(run.decoder.ln_final(run.final(place)[None]))[0]
    return next(token for token in logits.topk(2).indices.tolist() if token != without)


def written(run: SingleRun, text: GivenAnswer, place: int, asked: str) -> tuple[int, ...]:
    """The tokens that write a text after a position."""
    prompt: Prompt = run.prompt.tokens[: place + 1]
    if place == run.n_tokens - 1 and run.prompt.text is not None:
        prompt = run.prompt.text
    return answer_tokens(run.model, prompt, text, f"{asked} {text!r}")


def one_of(model: LanguageModel, tokens: tuple[int, ...], asked: str) -> int:
    """The only one of some tokens; several are refused."""
    if len(tokens) == 1:
        return tokens[0]
    (first,) = model.strings(tokens[:1])
    raise InterpError(
        asked,
        f"{len(tokens)} tokens, {model.tokenize(tokens).shown()}, but a logit difference is of two "
        "tokens",
        f"give its first token, {first!r}, or measure the whole answer by interp.scan or in a task "
        "with_metric('log_prob_diff')",
    )


def _direction(run: SingleRun, tokens: list[int]) -> Tensor:
    """(d_model,) float64 unembedding of the answer minus that of the wrong token."""
    answer, wrong = run.decoder.unembed[tokens].double()
    return answer - wrong


def _final_reader(run: SingleRun, place: int, tokens: list[int]) -> Tensor:
    """(d_model,) reads what a summand of the final stream adds to the logit difference."""
    return run.decoder.ln_final.reader(run.final(place), _direction(run, tokens))
