"""One run of one prompt, with every site that the readings of `interp.overview` need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.positions import Prompt, TokenizedPrompt
from interp.engine.architecture import Decoder
from interp.engine.forward import Runner, prompt_pattern
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.restart import baseline
from interp.models.language_model import Address, LanguageModel
from interp.runs.capture import run_with_cache

SITES_READ = ("resid_pre", "q", "v", "z", "attn_out", "post", "mlp_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class SingleRun:
    """The sites of one prompt's run, each (token, ...).

    Attributes:
        model: the model that ran.
        prompt: the prompt's tokens.
        made_of: hash of the weights with which it ran.
        sites: values by layer and site; resid_pre of layer n_layers is the final residual stream.
        changed: whether interventions were in force.
        budget_gb: the memory it was given.
    """

    model: LanguageModel
    prompt: TokenizedPrompt
    made_of: str
    sites: Mapping[Address, Tensor]
    changed: bool
    budget_gb: float

    @property
    def decoder(self) -> Decoder:
        """The model's weights by name.

        Raises:
            InterpError: the model has other weights now, because of a weight delta.
        """
        self.model.require_hash(self.made_of, "a kept run")
        return self.model.require_decoder("a kept run")

    def continued(self, place: int, tokens: tuple[int, ...]) -> SingleRun:
        """A run of the prompt up to a token, then of other tokens.

        Raises:
            InterpError: as `decoder`, or as `run_once`.
        """
        self.model.require_hash(self.made_of, "a kept run")
        prompt = self.prompt.tokens[: place + 1] + tokens
        return run_once(self.model, prompt, budget_gb=self.budget_gb)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.prompt.tokens)

    def place(self, position: int) -> int:
        """A token's index, counted from the start.

        Raises:
            InterpError: the prompt has no such token.
        """
        if isinstance(position, bool) or not -self.n_tokens <= position < self.n_tokens:
            raise InterpError(
                f"token {position!r} of a prompt",
                f"it has {self.n_tokens} tokens: {self.prompt.shown()}",
                f"give an index from 0 to {self.n_tokens - 1}, or a negative one from the end",
            )
        return int(position) % self.n_tokens

    def final(self, position: int) -> Tensor:
        """(d_model,) the final residual stream at a token."""
        return self.sites[len(self.decoder.blocks), "resid_pre"][position]

    def after(self, layer: int) -> Tensor:
        """(token, d_model) the residual stream behind a layer (site resid_post)."""
        found = self.sites.get((layer, "resid_post"))
        return self.sites[layer + 1, "resid_pre"] if found is None else found

    def pattern(self, layer: int) -> Tensor:
        """(head, query, key) the attention of a layer's heads."""
        if (layer, "pattern") in self.sites:
            return self.sites[layer, "pattern"]
        runner, attn = Runner(self.decoder), self.decoder.blocks[layer].attn
        at = torch.arange(self.n_tokens)
        q = runner.rotated(attn, "q", self.sites[layer, "q"], at)
        return prompt_pattern(attn, q, self.sites[layer, "k_rot"])


@says_too_little
def run_once(model: LanguageModel, prompt: Prompt, *, budget_gb: float = 2.0) -> SingleRun:
    """Run a prompt once and keep its sites.

    The fast engine runs it. Inside `intervene` the changed model runs through hooks.

    Raises:
        InterpError: no fast engine, a prompt that cannot be tokenised, or more memory than
            `budget_gb`.
    """
    decoder = model.require_decoder("reading a prompt")
    tokenized = model.tokenize(prompt)
    n, attn = len(tokenized.tokens), decoder.blocks[0].attn
    width = 5 * decoder.d_model + 3 * attn.n_kv_heads * attn.d_head + decoder.d_mlp
    size = n * width * len(decoder.blocks) * torch.finfo(model.dtype).bits / 8
    if size > budget_bytes(budget_gb):
        raise InterpError(
            f"reading a prompt of {n} tokens",
            f"{size / 1e9:z.2f} GB, over the budget of {budget_gb:g} GB",
            "give a shorter prompt, or raise budget_gb",
        )
    changed = bool(model.active)
    with torch.no_grad():
        sites = _changed(model, decoder, tokenized) if changed else _plain(decoder, tokenized)
    return SingleRun(
        model=model,
        prompt=tokenized,
        made_of=model.hash,
        sites=sites,
        changed=changed,
        budget_gb=budget_gb,
    )


def _plain(decoder: Decoder, prompt: TokenizedPrompt) -> Mapping[Address, Tensor]:
    return baseline(Runner(decoder), [prompt.tokens], frozenset(SITES_READ)).sites


def _changed(
    model: LanguageModel, decoder: Decoder, prompt: TokenizedPrompt
) -> Mapping[Address, Tensor]:
    """The same sites through hooks, with the interventions that are in force.

    Where the pattern is not offered it cannot be changed, and follows from queries and keys.
    """
    wanted = (*SITES_READ, "k", "pattern", "resid_post")
    sites = [site for site in wanted if model.sites[site] is None]
    seen = run_with_cache(model, [prompt.tokens], sites=sites)
    found = {at: value[0].to(model.device) for at, value in seen.values.items()}
    runner, at = Runner(decoder), torch.arange(len(prompt.tokens))
    for layer, block in enumerate(decoder.blocks):
        if (pattern := found.get((layer, "pattern"))) is not None:
            found[layer, "pattern"] = pattern.transpose(0, 1)
        else:
            found[layer, "k_rot"] = runner.rotated(block.attn, "k", found[layer, "k"], at)
    found[model.n_layers, "resid_pre"] = found[model.n_layers - 1, "resid_post"]
    return found
