"""A loaded model: its tokeniser, runs with hooks through TransformerLens, and its `Decoder`.

Only this folder uses the backend, TransformerLens.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from interp.core.arguments import listed, rows_of
from interp.core.branches import Unfolded
from interp.core.components import SITES, Axis, Component, check_site, within
from interp.core.continuations import piece_tokens
from interp.core.errors import InterpError
from interp.core.files import canonical_json
from interp.core.positions import Prompt, TokenizedPrompt
from interp.core.prompts import Task
from interp.core.schema import as_prompt
from interp.engine.architecture import Decoder
from interp.models.batches import Address, Batch, Hook, batches, padded
from interp.models.bridge import build_bridge, hook_points
from interp.models.engine_hooks import run_hooked

HOOKED = "activation_patching with engine='hooks', cache=False"
"""How to measure single components inside `intervene`, for error messages."""


@dataclass(kw_only=True)
class LanguageModel:
    """A causal language model that has passed its checks.

    Attributes:
        hf_model: the Hugging Face model, which `bridge` changes in place.
        decoder: the weights by name, for the fast engine; None if it cannot run this model.
        engine_reason: why the fast engine cannot run it, or None.
        unbridged: why TransformerLens cannot run it, or None. Its hooks then run in `decoder`.
        hash: sha256 of the weights and configuration.
        parallel: whether attention and MLP read the same residual stream.
        gated: whether the MLP has a gate.
        post_norms: whether a norm follows attention.
        notes: further findings at loading, e.g. special tokens left out of prompts and what could
            not be checked.
        max_positions: length of the longest prompt in tokens; None for any.
        switch: prompts longer than this never share a pass with others, because the rotary angles
            depend on the longest prompt of a pass.
        ragged: if False, prompts of different lengths never share a pass, because padding changes
            their numbers.
        n_experts: experts in a layer, with a shared one; 0 unless every layer is a mixture of them.
        sites: for each site None if it can be read and changed, or else the reason it cannot.
        lock: held during every run and inside `intervene`.
        active: hooks of the interventions in force.
    """

    name: str
    hf_model: Any
    tokenizer: Any
    decoder: Decoder | None
    hash: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    family: str
    parallel: bool
    gated: bool
    post_norms: bool
    n_experts: int = 0
    engine_reason: str | None = None
    unbridged: str | None = None
    card: str = ""
    notes: tuple[str, ...] = ()
    max_positions: int | None = None
    switch: int | None = None
    ragged: bool = True
    sites: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(SITES))
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    active: list[Mapping[Address, list[Hook]]] = field(default_factory=list, repr=False)
    _bridge: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.family}, {self.n_layers} layers, "
            f"{self.n_heads} heads over {self.n_kv_heads} key/value heads, d_model {self.d_model}, "
            f"{self.d_mlp} neurons, {self.hash[:12]})"
            + "".join(f"\n  {note}" for note in self.notes)
        )

    @property
    def bridge(self) -> Any:
        """TransformerLens' wrapper of the model, which is made when hooks first need it.

        Raises:
            InterpError: TransformerLens does not support the architecture.
        """
        with self.lock:
            if self._bridge is None:
                self.keep_bridge(build_bridge(self.hf_model))
            return self._bridge

    def keep_bridge(self, bridge: Any) -> None:
        """Use a bridge that is made, or none yet; it gets the model's tokeniser.

        A text then has the same tokens for both: the bridge prepends what the tokeniser does.
        """
        self._bridge = bridge
        if bridge is not None and self.tokenizer is not None:
            bridge.tokenizer, begins = self.tokenizer, bool(self.affixes[0])
            bridge.cfg.tokenizer_prepends_bos = bridge.cfg.default_prepend_bos = begins

    @property
    def device(self) -> torch.device:
        """The device of the embedding."""
        return next(self.hf_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.hf_model.parameters()).dtype

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """The tokens of a prompt, with the special tokens that the tokeniser puts before a text.

        Special tokens that it puts after a text, such as an end-of-text token, are left out: the
        model would otherwise be read after them. If a text already begins with the special tokens,
        it keeps one copy of them.

        Raises:
            InterpError: the prompt is a text and the model has no tokeniser, the prompt has no
                tokens or more than the model has positions, or an id is outside the vocabulary.
        """
        asked, limit = f"a prompt for {self.name}", self.max_positions
        prompt = as_prompt(prompt, asked)
        tokens, spans = self.cut(prompt) if isinstance(prompt, str) else (prompt, None)
        if not tokens or (limit is not None and len(tokens) > limit):
            most = "at least 1 token" if limit is None else f"between 1 and {limit} tokens"
            raise InterpError(asked, f"{len(tokens)} tokens", f"write {most}")
        if min(tokens) < 0 or max(tokens) >= self.d_vocab:
            found = f"token ids from {min(tokens)} to {max(tokens)}"
            raise InterpError(asked, found, f"its vocabulary has {self.d_vocab} tokens")
        return TokenizedPrompt(
            text=prompt if isinstance(prompt, str) else None,
            tokens=tokens,
            strings=self.strings(tokens),
            spans=spans,
            end_of_turn=getattr(self.tokenizer, "eos_token", None),
        )

    def cut(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...] | None]:
        """The tokens of a text as in `tokenize`, of any number, and their character ranges.

        Raises:
            InterpError: the model has no tokeniser.
        """
        if self.tokenizer is None:
            raise InterpError(
                f"text for {self.name}", "it has no tokeniser", "give tuples of token ids"
            )
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        encoded = self.tokenizer(text, return_offsets_mapping=fast)
        before, after = self.affixes
        ids, n = tuple(encoded["input_ids"]), len(before)
        kept = slice(n if n and ids[n:][:n] == before else 0, len(ids) - len(after))
        places = encoded["offset_mapping"][kept] if fast else None
        return ids[kept], None if places is None else tuple((int(a), int(b)) for a, b in places)

    @cached_property
    def affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens that the tokeniser adds before and after every text."""
        if self.tokenizer is None:
            return (), ()
        words = self.tokenizer.get_vocab().keys() - set(self.tokenizer.all_special_tokens)
        word = "a" if "a" in words or not words else min(words)
        whole, bare = (
            tuple(self.tokenizer(word, add_special_tokens=special)["input_ids"])
            for special in (True, False)
        )
        for n in range(len(whole) - len(bare) + 1):
            if bare and whole[n : n + len(bare)] == bare:
                return whole[:n], whole[n + len(bare) :]
        return (), ()

    def strings(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """Each token as text."""
        if self.tokenizer is None:
            return tuple(f"<{token}>" for token in tokens)
        return tuple(self.tokenizer.decode([token]) for token in tokens)

    def token_id(self, text: str) -> tuple[int, ...]:
        """The tokens of a text inside a longer text: `interp.core.continuations.piece_tokens`."""
        if self.tokenizer is None:
            raise InterpError(f"the token {text!r}", f"{self.name} has no tokeniser", "give an id")
        return piece_tokens(self.tokenizer, text)

    def single_token(self, text: str | int, asked: str = "token") -> int:
        """The id of a text that is a single token. An id is checked and returned.

        Raises:
            InterpError: the text is several tokens or none, or the id is outside the vocabulary.
        """
        if not isinstance(text, str):
            return within([text], self.d_vocab, "token", self.name)[0]
        tokens = self.token_id(text)
        if len(tokens) != 1:
            raise InterpError(
                f"{asked} {text!r}",
                f"{len(tokens)} tokens in {self.name}: {'|'.join(self.strings(tokens))}",
                "give a text of one token (it may need a leading space)",
            )
        return tokens[0]

    def require_decoder(self, what: str) -> Decoder:
        """The weights by name, which the fast engine and all analyses of weights need.

        Raises:
            InterpError: the engine does not know the family, the model is on several devices, or it
                is in training mode.
        """
        self.refuse_training()
        if self.decoder is None:
            raise InterpError(
                f"{what} on {self.name}",
                str(self.engine_reason),
                "use a known family; run_with_cache() and intervene() work on every model",
            )
        return self.decoder

    def refuse_training(self) -> None:
        """Refuse a model in training mode, where dropout may change every run.

        Raises:
            InterpError: the model is in training mode.
        """
        for name, part in (("bridge", self._bridge), ("hf_model", self.hf_model)):
            if part is not None and part.training:
                found = "it is in training mode"
                raise InterpError(f"running {self.name}", found, f"call model.{name}.eval()")

    def require_parts(self, labels: Sequence[str], site: str) -> list[Component]:
        """The components with these labels: heads for site z, neurons for site post.

        Raises:
            InterpError: there is no label, a label is of another kind or occurs twice, or a
                component does not exist.
        """
        labels = listed(labels)
        parts = [Component.parse(label) for label in labels]
        wrong = [str(part) for part in parts if part.site != site or part.index is None]
        if not parts or wrong or len(set(parts)) < len(parts):
            kind = "heads such as L17H11" if SITES[site] == "head" else "neurons such as L26N6475"
            raise InterpError(
                f"components {list(labels)}", f"not suitable: {wrong}", f"give {kind}, each once"
            )
        for part in parts:
            self.require_component(part)
        return parts

    def require_component(self, component: Component) -> None:
        """Refuse a component that this model does not have.

        Raises:
            InterpError: the model does not offer the site, or the layer, head or neuron does not
                exist.
        """
        self.require_site(component.site)
        within([component.layer], self.n_layers, "layer", self.name)
        axis = SITES[component.site]
        if component.index is not None and axis is not None:
            within([component.index], self.size(axis), axis, self.name)

    def require_components(
        self, layer: int, site: str, numbers: Iterable[int | None] = (None,)
    ) -> None:
        """Refuse, as `require_component`, components of one site; thousands are checked at once."""
        self.require_component(Component(layer, site))
        axis = SITES[site]
        size = 0 if axis is None else self.size(axis)
        for number in numbers:
            if type(number) is not int or not 0 <= number < size:
                self.require_component(Component(layer, site, number))

    def size(self, axis: Axis) -> int:
        """The number of heads, key/value heads, neurons or experts in a layer."""
        return {
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "neuron": self.d_mlp,
            "expert": self.n_experts,
        }[axis]

    def require_site(self, site: str) -> None:
        """Refuse a site that this model does not offer.

        Raises:
            InterpError: there is no such site, or the model does not offer it; the message gives
                the reason.
        """
        if (reason := self.sites[check_site(site)]) is not None:
            offered = ", ".join(name for name, why in self.sites.items() if why is None)
            raise InterpError(f"site {site} of {self.name}", reason, f"this model offers {offered}")

    def run(
        self,
        prompts: Task | Prompt | Sequence[Prompt],
        *,
        hooks: Mapping[Address, list[Hook]] | None = None,
        padding_side: str = "right",
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Run prompts with hooks, in padded and masked batches; yield each batch and its logits.

        Prompts are texts, token ids or a task (its clean prompts). They are grouped into batches of
        at most about `BATCH_TOKENS` tokens, and separated as `switch` and `ragged` require. Results
        do not depend on the grouping or on the padding side.

        Raises:
            InterpError: the padding side is unknown, or the model is in training mode.
        """
        for batch, logits, _ in self._batches(prompts, hooks, padding_side):
            yield batch, logits

    def _batches(
        self,
        prompts: Task | Prompt | Sequence[Prompt],
        hooks: Mapping[Address, list[Hook]] | None = None,
        padding_side: str = "right",
        *,
        tails: Sequence[int] | None = None,
    ) -> Iterator[tuple[Batch, Tensor, list[int]]]:
        """What `run` yields, with the columns of the batch that the logits belong to.

        tails: how many last tokens of each prompt are read. The logits of other columns may be
        missing: with a large vocabulary they take as long as several layers.
        """
        self.refuse_training()
        if padding_side not in ("left", "right"):
            raise InterpError(
                f"padding_side={padding_side!r}", "no such side", "use 'left' or 'right'"
            )
        rows = rows_of(self, prompts)
        lengths = [len(row) for row in rows]
        for chosen in batches(lengths, self.switch, self.ragged):
            batch = padded([rows[i] for i in chosen], chosen, padding_side, self.device, len(rows))
            columns, some = list(range(batch.tokens.shape[1])), {}
            if tails is not None and self._keeps_logits:
                columns = batch.tail_columns([tails[i] for i in chosen])
                some["logits_to_keep"] = torch.tensor(columns, device=self.device)
            with self.lock:
                together: dict[Address, list[Hook]] = {}
                for group in (*self.active, hooks or {}):
                    for address, functions in group.items():
                        together.setdefault(address, []).extend(functions)
                for layer, site in together:
                    self.require_site(site)
                    within([layer], self.n_layers, "layer", self.name)
                if self.unbridged is not None:
                    logits = run_hooked(self.require_decoder("running"), batch, together)
                else:
                    points = hook_points(together, batch, self.d_head, self.decoder)
                    with self.bridge.hooks(fwd_hooks=points):
                        logits = self.bridge(
                            batch.tokens, attention_mask=batch.mask, return_type="logits", **some
                        )
            yield batch, logits, columns

    @cached_property
    def _keeps_logits(self) -> bool:
        """Whether the model can leave out the logits of some tokens."""
        known = signature(self.hf_model.forward).parameters
        return self.unbridged is None and "logits_to_keep" in known

    def last_logits(self, prompts: Task | Prompt | Sequence[Prompt], **options: Any) -> Tensor:
        """(prompts, d_vocab) logits at the last token of each prompt."""
        if not (rows := rows_of(self, prompts)):
            raise InterpError(f"running {self.name}", "no prompts", "give at least one")
        return self.tail_logits(rows, **options)

    def tail_logits(self, rows: Sequence[Sequence[int]], **options: Any) -> Tensor:
        """(tokens, d_vocab) logits at the tails of rows, one row after the other.

        The tail is the last token of a prompt, and the tokens behind it of rows with branches
        (`interp.core.branches`), which are run as plain prompts.
        """
        plain, found = Unfolded.of(rows), {}
        with torch.no_grad():
            made = self._batches(plain.rows, tails=plain.counts, **options)
            for batch, logits, columns in made:
                for row, prompt in enumerate(batch.prompts.tolist()):
                    count = plain.counts[prompt]
                    first = columns.index(batch.column(row, int(batch.lengths[row]) - count))
                    found[prompt] = logits[row, first : first + count].clone()
        return plain.folded([found[prompt] for prompt in range(len(plain.rows))])

    def require_hash(self, made_of: str, what: str) -> None:
        """Refuse to go on with something that was made when the model had other weights.

        Raises:
            InterpError: a weight delta was put on, or taken off, since then.
        """
        if self.hash != made_of:
            raise InterpError(
                f"{what} of {self.name}",
                f"made with weights {made_of[:12]}, the model has {self.hash[:12]} now",
                "use it where it was made: inside the block of the same weight delta, or outside",
            )

    def refuse_changed(self, what: str, instead: str = "a call outside the block") -> None:
        """Refuse a call that reads weights, or keeps its result, while interventions are in force.

        `instead` names what to use instead.

        Raises:
            InterpError: the call is inside `intervene`.
        """
        with self.lock:
            if self.active:
                raise InterpError(
                    f"{what} inside intervene()",
                    "it would ignore the interventions, or keep a changed result as a plain one",
                    f"use {instead}",
                )

    @contextmanager
    def hooked(self, hooks: Mapping[Address, list[Hook]]) -> Iterator[None]:
        """Add hooks to every run inside the block, and hold the lock; both end with the block."""
        with self.lock:
            self.active.append(hooks)
            try:
                yield
            finally:
                self.active.pop()


PASSING = (
    "_name_or_path", "transformers_version", "architectures", "_attn_implementation",
    "attn_implementation", "dtype",
)  # fmt: skip
"""Entries of a configuration, at any depth, that do not identify a model."""


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without its `PASSING` entries."""
    return {
        key: _lasting(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in PASSING
    }


def fingerprint(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], apart: Sequence[str] = ()
) -> str:
    """sha256 of a model's weights and configuration, which identifies it in keys and results.

    It does not depend on the device, but on the dtype. Entries of the configuration that say where
    a model came from are left out, and so is the implementation of attention, which
    `interp.models.loading.wrap` sets to "eager" for every model. `apart` lists other differences
    that affect what the model computes (`interp.models.checkpoints.departures`).
    """
    digest = hashlib.sha256("\n".join(apart).encode())
    digest.update(canonical_json(_lasting(config)).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
