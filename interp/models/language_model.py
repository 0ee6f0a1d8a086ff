"""A loaded model: tokeniser, hooked runs through TransformerLens, and its parts for the engine.

The only file, with its neighbours in this folder, that knows the backend.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interp.core.arguments import listed, rows_of
from interp.core.components import SITES, Axis, Component, check_site, within
from interp.core.continuations import piece_tokens
from interp.core.errors import InterpError
from interp.core.files import canonical_json
from interp.core.positions import Prompt, TokenizedPrompt
from interp.core.prompts import Task
from interp.core.schema import as_prompt
from interp.engine.architecture import Decoder
from interp.models.batches import Batch, batches, padded

Address = tuple[int, str]

HOOKED = "activation_patching with engine='hooks', cache=False"
"""What measures single components inside `intervene`."""

_ORDER = {site: place for place, site in enumerate(SITES)}


Hook = Callable[[Tensor, Batch], Tensor]
"""(value of a site, the batch) -> its new value. Heads are (batch, pos, head, d_head), patterns
(batch, head, query_pos, key_pos), everything else (batch, pos, width)."""


@dataclass(kw_only=True)
class LanguageModel:
    """A causal language model that has passed its checks.

    `sites` maps each site to None where it can be read and changed, else to the reason it
    cannot. `engine_reason` says why there is no fast engine, if there is none. `notes` say what
    else was found at loading: special tokens left out of prompts, what could not be checked.

    `max_positions` is the longest prompt (None: any). Prompts of up to `switch` tokens and longer
    ones never share a pass, because the rotary angles depend on the longest prompt of a pass.
    Where not `ragged`, prompts of different lengths never do, because padding changes them.
    """

    name: str
    bridge: Any
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
    engine_reason: str | None = None
    card: str = ""
    notes: tuple[str, ...] = ()
    max_positions: int | None = None
    switch: int | None = None
    ragged: bool = True
    sites: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(SITES))
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    active: list[Mapping[Address, list[Hook]]] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.family}, {self.n_layers} layers, "
            f"{self.n_heads} heads over {self.n_kv_heads} key/value heads, d_model {self.d_model}, "
            f"{self.d_mlp} neurons, {self.hash[:12]})"
            + "".join(f"\n  {note}" for note in self.notes)
        )

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.bridge.parameters()).dtype

    # -- tokens ----------------------------------------------------------------------------

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """A prompt's tokens as the tokeniser gives them, with what it puts before a text.

        What it puts after one, such as an end-of-text token, is left out: the model would be read
        behind it. A text that already begins with the special tokens keeps one copy of them.

        Raises:
            InterpError: no tokeniser for text, no tokens, or more than the model has positions.
        """
        prompt = as_prompt(prompt, f"a prompt for {self.name}")
        tokens, spans = self.cut(prompt) if isinstance(prompt, str) else (prompt, None)
        limit = self.max_positions
        if not tokens or (limit is not None and len(tokens) > limit):
            raise InterpError(
                f"a prompt for {self.name}",
                f"{len(tokens)} tokens",
                f"write {'at least 1 token' if limit is None else f'between 1 and {limit} tokens'}",
            )
        if min(tokens) < 0 or max(tokens) >= self.d_vocab:
            raise InterpError(
                f"a prompt for {self.name}",
                f"token ids from {min(tokens)} to {max(tokens)}",
                f"its vocabulary has {self.d_vocab} tokens",
            )
        return TokenizedPrompt(
            text=prompt if isinstance(prompt, str) else None,
            tokens=tokens,
            strings=self.strings(tokens),
            spans=spans,
            end_of_turn=getattr(self.tokenizer, "eos_token", None),
        )

    def cut(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...] | None]:
        """A text's tokens as in `tokenize`, of any number, and their places in it.

        Raises:
            InterpError: no tokeniser for text.
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
        """The special tokens that the tokeniser puts before and after every text."""
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
        """The tokens of a text inside another: `interp.core.continuations.piece_tokens`."""
        if self.tokenizer is None:
            raise InterpError(f"the token {text!r}", f"{self.name} has no tokeniser", "give ids")
        return piece_tokens(self.tokenizer, text)

    def single_token(self, text: str | int, asked: str = "token") -> int:
        """The id of a text that is one token; an id is checked and returned.

        Raises:
            InterpError: more tokens or none, or an id beyond the vocabulary.
        """
        if not isinstance(text, str):
            return within([text], self.d_vocab, "token", self.name)[0]
        tokens = self.token_id(text)
        if len(tokens) != 1:
            raise InterpError(
                f"{asked} {text!r}",
                f"{len(tokens)} tokens in {self.name}: {'|'.join(self.strings(tokens))}",
                "give a text of one token (mind its leading space)",
            )
        return tokens[0]

    # -- parts -----------------------------------------------------------------------------

    def require_decoder(self, what: str) -> Decoder:
        """The weights by name, which the fast engine and all weight analyses need.

        Raises:
            InterpError: the family is unknown to the engine, the model is spread over devices, or
                it is in training mode.
        """
        self.refuse_training()
        if self.decoder is None:
            raise InterpError(
                f"{what} on {self.name}",
                str(self.engine_reason),
                "use a known family; run_with_cache() and intervene() work on any model",
            )
        return self.decoder

    def refuse_training(self) -> None:
        """Refuse a model in training mode, where dropout may change every run.

        Raises:
            InterpError: `train()` was called on it.
        """
        if self.bridge.training:
            raise InterpError(
                f"running {self.name}", "it is in training mode", "call model.bridge.eval()"
            )

    def require_parts(self, labels: Sequence[str], site: str) -> list[Component]:
        """Heads (site z) or neurons (site post) by their labels, each once.

        Raises:
            InterpError: none, a label of another kind, one twice, or one that does not exist.
        """
        labels = listed(labels)
        parts = [Component.parse(label) for label in labels]
        wrong = [str(part) for part in parts if part.site != site or part.index is None]
        if not parts or wrong or len(set(parts)) < len(parts):
            kind = "heads such as L17H11" if SITES[site] == "head" else "neurons such as L26N6475"
            raise InterpError(
                f"components {list(labels)}", f"{wrong} unfit", f"give {kind}, each once"
            )
        for part in parts:
            self.require_component(part)
        return parts

    def require_component(self, component: Component) -> None:
        """Refuse a component this model does not have.

        Raises:
            InterpError: the site is absent, or the layer, head or neuron does not exist.
        """
        self.require_site(component.site)
        within([component.layer], self.n_layers, "layer", self.name)
        axis = SITES[component.site]
        if component.index is not None and axis is not None:
            within([component.index], self.size(axis), axis, self.name)

    def size(self, axis: Axis) -> int:
        """Heads, key/value heads or neurons of a layer."""
        return {"head": self.n_heads, "kv_head": self.n_kv_heads, "neuron": self.d_mlp}[axis]

    def require_site(self, site: str) -> None:
        """Refuse a site this model does not offer.

        Raises:
            InterpError: unknown, or absent with the reason.
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
        """Hooked forward passes, padded and masked: yields each batch with its logits.

        Prompts are texts, token ids or a task (its clean prompts). They are grouped so that a pass
        holds at most about `BATCH_TOKENS` tokens, and apart as `switch` and `ragged` ask. Results
        do not depend on the grouping or on the padding side.

        Raises:
            InterpError: an unknown padding side, or a model in training mode.
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
            with self.lock:
                together: dict[Address, list[Hook]] = {}
                for group in (*self.active, hooks or {}):
                    for address, functions in group.items():
                        together.setdefault(address, []).extend(functions)
                # In causal order: an edit of resid_mid follows those of what it is the sum of.
                points = [
                    point
                    for address in sorted(together, key=lambda at: (at[0], _ORDER[at[1]]))
                    for point in self._points(address, together[address], batch)
                ]
                with self.bridge.hooks(fwd_hooks=points):
                    logits = self.bridge(
                        batch.tokens, attention_mask=batch.mask, return_type="logits"
                    )
            yield batch, logits

    def last_logits(self, prompts: Task | Prompt | Sequence[Prompt], **options: Any) -> Tensor:
        """Logits at the last token of each prompt, (prompts, d_vocab)."""
        if not (rows := rows_of(self, prompts)):
            raise InterpError(f"running {self.name}", "no prompts", "give at least one")
        with torch.no_grad():
            found = {
                prompt: logits[row, batch.column(row, int(batch.lengths[row]) - 1)].clone()
                for batch, logits in self.run(rows, **options)
                for row, prompt in enumerate(batch.prompts.tolist())
            }
        return torch.stack([found[prompt] for prompt in range(len(rows))])

    def refuse_changed(self, what: str, instead: str = "a call outside the block") -> None:
        """Refuse what reads the weights, or keeps its result, while interventions are in force.

        `instead` is what does see them, if anything does.

        Raises:
            InterpError: called inside `intervene`.
        """
        with self.lock:
            if self.active:
                raise InterpError(
                    f"{what} inside intervene()",
                    "it would not see the interventions, or keep their effect as a plain result",
                    f"use {instead}",
                )

    @contextmanager
    def hooked(self, hooks: Mapping[Address, list[Hook]]) -> Iterator[None]:
        """Every run inside the block has these hooks; the lock is held, nothing stays behind."""
        with self.lock:
            self.active.append(hooks)
            try:
                yield
            finally:
                self.active.pop()

    def _points(
        self, address: Address, hooks: list[Hook], batch: Batch
    ) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """TransformerLens hooks for one site.

        resid_mid needs care: its hook sits on the second norm's input, behind the skip
        connection, so an edit there would change the MLP's reading only. The edit is made on
        attn_out instead, so that resid_pre + attn_out becomes the new value.
        """
        layer, site = address
        self.require_site(site)
        within([layer], self.n_layers, "layer", self.name)

        def apply(value: Tensor, hook: Any = None) -> Tensor:
            shaped = value
            if site in ("q", "k", "v", "z") and value.dim() == 3:
                shaped = value.unflatten(-1, (-1, self.d_head))
            for function in hooks:
                shaped = function(shaped, batch)
            return shaped.reshape(value.shape)

        if site != "resid_mid":
            return [(hook_name(layer, site), apply)]
        seen: dict[str, Tensor] = {}

        def remember(value: Tensor, hook: Any = None) -> None:
            seen["resid_pre"] = value

        def through_attn_out(value: Tensor, hook: Any = None) -> Tensor:
            mid = seen["resid_pre"] + value
            new = apply(mid)
            needed = new - seen["resid_pre"]
            if needed.requires_grad:
                return needed
            # Where nothing changed, not even a rounding error does.
            return torch.where(new == mid, value, needed)

        return [
            (hook_name(layer, "resid_pre"), remember),
            (hook_name(layer, "attn_out"), through_attn_out),
        ]


def hook_name(layer: int, site: str) -> str:
    """TransformerLens' name for a site's hook."""
    inside = {
        **dict.fromkeys(("q", "k", "v", "z", "pattern"), "attn."),
        **dict.fromkeys(("pre", "pre_linear", "post"), "mlp."),
    }
    return f"blocks.{layer}.{inside.get(site, '')}hook_{site}"


def build_bridge(hf_model: Any) -> Any:
    """TransformerLens' bridge around a Hugging Face model, which it changes in place.

    Raises:
        InterpError: an architecture TransformerLens does not bridge.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name = type(hf_model).__name__
    for module in hf_model.modules():
        if type(module).__name__ == "GPTNeoXAttention" and module.query_key_value.bias is None:
            # TransformerLens cannot split a projection without a bias: one of zeros is the same.
            joint = module.query_key_value
            zeros = joint.weight.new_zeros(joint.out_features)
            joint.bias = torch.nn.Parameter(zeros, requires_grad=False)
    try:
        bridge = build_bridge_from_module(hf_model, name, hf_config=hf_model.config)
        for module in bridge.modules():  # eval() would visit shared modules many times over
            module.training = False
        return bridge
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InterpError(
            f"bridging {name}",
            f"TransformerLens fails on it: {reason}",
            "use a causal language model it knows",
        ) from error


def fingerprint(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], apart: Sequence[str] = ()
) -> str:
    """sha256 of a model's weights and configuration: the identity used in every key and result.

    Independent of the device; different for another dtype. Names of the configuration that say
    where a model came from, not what it computes, are left out; so is the implementation of
    attention, which `interp.models.loading.wrap` makes "eager" for every model. `apart` is what
    else the model computes with (`interp.models.checkpoints.departures`).
    """
    digest = hashlib.sha256("\n".join(apart).encode())
    passing = ("_name_or_path", "transformers_version", "architectures", "_attn_implementation")
    kept = {k: v for k, v in config.items() if k not in (*passing, "attn_implementation", "dtype")}
    digest.update(canonical_json(kept).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
