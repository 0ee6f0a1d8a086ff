"""Load a model by name and check it."""

from __future__ import annotations

import json
import os
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from interp.core.components import EXPERT_SITES, SITES
from interp.core.errors import InterpError, unknown
from interp.core.files import cache_dir, content_key, versions
from interp.core.records import read_sealed, write_sealed
from interp.core.schema import Boolean, checked
from interp.engine.architecture import Decoder, Experts, Norm
from interp.engine.forward import Runner
from interp.engine.memory import no_collection, says_too_little
from interp.engine.restart import baseline
from interp.models import embedded, registry
from interp.models.bridge import build_bridge
from interp.models.checkpoints import departures, read_checkpoint, text_model
from interp.models.checks import (
    VERSION,
    check_model,
    check_plain,
    check_prompt,
    engine_tolerance,
    rotary_switch,
    row_gap,
)
from interp.models.families import read_architecture
from interp.models.language_model import LanguageModel, fingerprint
from interp.models.modules import refuse_attached, tensors_of
from interp.models.registry import known_models
from interp.models.toys.build import word_tokenizer
from interp.models.toys.circuits import TOYS, build_toy

FAMILY_TABLE = Path(__file__).parent.parent / "data" / "families.json"


def known_families() -> list[dict[str, Any]]:
    """What tiny random models of each tested family offer: name, architecture, runs, missing.

    `runs` is "engine", "hooks" or "refused". `missing` maps sites to the reason they are not
    offered ("" stands for the whole model). `python -m tests.families` writes this table, and the
    tests compare it.
    """
    return json.loads(FAMILY_TABLE.read_text(encoding="utf-8"))["families"]


@says_too_little
@no_collection()
def load_model(
    name: Any = embedded.NAME,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    check: bool = True,
) -> LanguageModel:
    """Load a causal language model by name and check it.

    Args:
        name: `smollm2-135m-instruct` (the default), a trained model of the package such as
            `countdown-smollm2`, a `toy-*` name, a local folder (of a model or of a PEFT adapter,
            which is merged into its base), a GGUF file, a Hugging Face id, or a transformers model
            in memory, which is changed in place. A model in memory must have no hooks and no
            patched `forward`, and can be loaded only once. TransformerLens or the fast engine must
            support the architecture; `interp models` lists families.
        device: "cpu", "cuda" or "mps"; None uses a GPU if there is one.
        dtype: "float32" (the default), "float64", "bfloat16" or "float16".
        device_map: as in transformers, for models larger than one GPU. Such models run through
            hooks, without the fast engine.
        revision: the branch, tag or commit of a Hugging Face id.
        tokenizer: the tokeniser of a model in memory.
        check: test every site with the replacement identity. For a model from files the result is
            kept in the cache, so that only the first load takes this time. A model in memory is
            checked each time.

    Raises:
        InterpError: the name is unknown, a Hugging Face id cannot be reached, files are missing,
            damaged or do not fit the configuration, the weights hold NaN, the logits through hooks
            differ from Hugging Face's, or a model in memory has hooks or a patched `forward`, or
            was loaded before.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(name, torch.nn.Module):
        if any(given is not None for given in (device, dtype, device_map, revision)):
            raise InterpError(
                "device, dtype, device_map or revision of a model in memory",
                "it is used as it is",
                "call its .to(...) first",
            )
        called = getattr(name.config, "_name_or_path", "")
        return wrap(name, tokenizer, name=called or type(name).__name__, check=check)
    check = checked(Boolean, check, "check of load_model()")
    if tokenizer is not None:
        raise InterpError(f"a tokenizer for {name!r}", "it has its own", "omit it")
    if not isinstance(name, str | Path) or not str(name):
        do = "give a name from `interp models`, a folder, a GGUF file, a Hugging Face id or a model"
        raise InterpError(f"loading {name!r:.60}", "not the name of a model", do)
    name, kinds = str(name), ("float32", "float64", "bfloat16", "float16")
    dtype = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if dtype not in kinds:
        raise unknown("dtype", dtype, kinds)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise InterpError(f"device {device!r}", said, "use a device that torch offers") from error
    hf_model, tokenizer, card = _by_name(name, getattr(torch, dtype), device_map, revision)
    if device_map is None:
        hf_model = hf_model.to(device)
    return wrap(hf_model, tokenizer, name=name, card=card, check=check, from_files=True)


def _by_name(name: str, dtype: Any, device_map: Any, revision: str | None) -> tuple[Any, Any, str]:
    """The Hugging Face model with a name, its tokeniser and its card."""
    known = [entry.name for entry in known_models()]
    if revision is not None and name in known:
        raise InterpError(f"revision {revision!r} of {name}", "it has only one", "omit it")
    if device_map is not None and name in known and name != embedded.NAME:
        raise InterpError(f"device_map for {name}", "it fits on one device", "give device instead")
    if name in TOYS:
        toy = build_toy(name)
        roles = "\n".join(f"- {label}: {role}" for label, role in sorted(toy.roles.items()))
        card = f"# {name}\n\n{toy.description}\n\n{roles}\n"
        return toy.model.to(dtype), word_tokenizer(toy.vocabulary), card
    if name.startswith("toy-") and not Path(name).exists():
        raise unknown("toy", name, TOYS)
    if name in known and name != embedded.NAME:
        folder = registry.organisms()[name]
        return (*registry.load_organism(folder, dtype=dtype), registry.card(folder))
    source, card = name, ""
    if name == embedded.NAME:
        source, card = str(embedded.directory()), embedded.CARD
    found = read_checkpoint(
        source, dtype=dtype, device_map=device_map, revision=revision, known=known
    )
    return (*found, card)


def wrap(
    hf_model: Any,
    tokenizer: Any = None,
    *,
    name: str,
    card: str = "",
    check: bool = True,
    from_files: bool = False,
) -> LanguageModel:
    """A `LanguageModel` around a Hugging Face causal language model, which it changes in place.

    If the model was just read `from_files`, the result of its check is kept in the cache and looked
    up there. Otherwise its hash includes everything that differs from a new model of its class and
    configuration.

    Raises:
        InterpError: as in `load_model`.
    """
    refuse_attached(hf_model, name)
    hf_model = transformer(hf_model.eval().requires_grad_(False), name)
    config, switch = hf_model.config, rotary_switch(hf_model.config)
    decoder, reason = fast_engine(hf_model)
    apart = [] if from_files else departures(hf_model)
    weights_hash = fingerprint(hf_model.state_dict(), config.to_dict(), apart)
    prompt, notes = check_prompt(config, sum(p.numel() for p in hf_model.parameters()))
    device = str(next(hf_model.parameters()).device)
    key = content_key([VERSION, weights_hash, versions(), device, decoder is not None])
    kept_at = cache_dir() / "checks" / f"{key}.json"
    kept = _kept_check(kept_at, key) if check and from_files else None
    reference = _reference(hf_model, prompt, name) if check and kept is None else None
    bridge, unbridged = None, None if kept is None else kept["unbridged"]
    if decoder is None or kept is None:
        try:
            bridge = build_bridge(hf_model)
        except InterpError as error:
            if decoder is None:
                raise
            unbridged = str(error.found)
    model = LanguageModel(
        name=name,
        hf_model=hf_model,
        tokenizer=tokenizer,
        decoder=decoder,
        hash=weights_hash,
        **(_sizes_of(bridge) if decoder is None else sizes(decoder)),
        d_vocab=config.vocab_size,
        family=config.model_type,
        engine_reason=reason,
        unbridged=unbridged,
        card=card,
        max_positions=getattr(config, "max_position_embeddings", None),
    )
    model.keep_bridge(bridge)
    _limit_lengths(model, switch)
    model.notes += notes
    _note_special_tokens(model)
    if reference is not None:
        hidden, logits = reference
        misread = check_engine(model, prompt, hidden, logits)
        if unbridged is not None and misread is not None:
            do = "use a causal language model that TransformerLens supports"
            raise InterpError(f"loading {name}", f"{unbridged}; {misread}", do)
        check_model(model, (prompt, logits))
        if unbridged is not None:
            check_plain(model, prompt)
        kept = {"sites": model.sites, "ragged": model.ragged, "d_mlp": model.d_mlp}
        kept |= {"misread": misread, "unbridged": unbridged}
        try:
            if from_files:
                write_sealed(kept_at, "check", VERSION, kept, key=key)
        except InterpError as error:
            warnings.warn(f"the check of {name} is not kept: {error}", stacklevel=3)
    if kept is not None:
        model.sites, model.ragged, model.d_mlp = kept["sites"], kept["ragged"], kept["d_mlp"]
        if kept["misread"] is not None:
            model.decoder, model.engine_reason = None, kept["misread"]
            model.sites |= dict.fromkeys(EXPERT_SITES, "the fast engine reads them wrong")
    if unbridged is not None:
        model.notes += ("runs with hooks take the fast engine: TransformerLens cannot run it",)
    if not model.ragged:
        model.notes += ("padding changes its numbers: prompts of different lengths run separately",)
    return model


def fast_engine(hf_model: Any) -> tuple[Decoder | None, str | None]:
    """What the fast engine runs of a Hugging Face model, or None and the reason it does not."""
    if getattr(hf_model, "hf_device_map", None) and len(set(hf_model.hf_device_map.values())) > 1:
        return None, "the weights are spread over several devices"
    if (switch := rotary_switch(hf_model.config)) is not None:
        return None, f"{switch[0]} rotary angles depend on the length of the prompt"
    try:
        return read_architecture(hf_model), None
    except InterpError as error:
        return None, f"{error.asked}: {error.found}"


def sizes(decoder: Decoder) -> dict[str, Any]:
    """The sizes and parts of a model, from its weights."""
    block = decoder.blocks[0]
    return {
        "n_layers": len(decoder.blocks),
        "n_heads": block.attn.n_heads,
        "n_kv_heads": block.attn.n_kv_heads,
        "d_model": decoder.d_model,
        "d_head": block.attn.d_head,
        "d_mlp": decoder.d_mlp,
        "parallel": block.parallel,
        "gated": isinstance(block.mlp, Experts) or block.neurons.up is not None,
        "post_norms": isinstance(block.ln1_post, Norm),
        "n_experts": decoder.n_experts,
    }


def _sizes_of(bridge: Any) -> dict[str, Any]:
    """The same, from TransformerLens' configuration."""
    cfg = bridge.cfg
    return {
        "n_layers": cfg.n_layers,
        "n_heads": cfg.n_heads,
        "n_kv_heads": getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp or 0,
        "parallel": bool(cfg.parallel_attn_mlp),
        "gated": bool(cfg.gated_mlp),
        "post_norms": hasattr(bridge.blocks[0], "ln1_post"),
    }


def transformer(hf_model: Any, name: str) -> Any:
    """The model to wrap: with adapters merged, only the text part, and eager attention.

    Raises:
        InterpError: it is not a causal transformer, or hooks would compute something else.
    """
    if hasattr(hf_model, "merge_and_unload"):
        hf_model = hf_model.merge_and_unload().requires_grad_(False)
    hf_model = text_model(hf_model)
    config = hf_model.config
    kind, do = type(hf_model).__name__, "load a causal transformer such as Llama, Qwen or GPT-2"
    if getattr(config, "is_encoder_decoder", False):
        raise InterpError(f"wrapping {name}", f"{kind} has an encoder and a decoder", do)
    needed = {"attention heads": "num_attention_heads", "layers": "num_hidden_layers"}
    for what, entry in needed.items():
        if not getattr(config, entry, None):
            raise InterpError(f"wrapping {name}", f"{kind} has no {what}: not a transformer", do)
    if kind == "FalconForCausalLM" and config.alibi:
        found = "the eager attention of transformers, which hooks need, adds ALiBi twice"
        raise InterpError(f"wrapping {name}", found, "load a Falcon with rotary positions")
    if hf_model.dtype == torch.float64 and hasattr(hf_model, "set_experts_implementation"):
        hf_model.set_experts_implementation("eager")  # the others have no float64
    if config._attn_implementation != "eager":
        hf_model.set_attn_implementation("eager")  # other implementations do not give the pattern
    return hf_model


def _reference(hf_model: Any, prompt: list[int], name: str) -> tuple[list[Any], Any]:
    """The unwrapped model's residual stream before each layer, and its logits, on a prompt."""
    for tensor, value in hf_model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InterpError(
                f"checking {name}", f"{tensor} holds NaN or infinity", "load another copy of it"
            )
    device = next(hf_model.parameters()).device
    try:
        with torch.no_grad():
            out = hf_model(torch.tensor([prompt], device=device), output_hidden_states=True)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise InterpError(
            f"running {name} on {len(prompt)} tokens",
            f"transformers fails: {' '.join(str(error).split())[:300]}",
            "compare its configuration with an intact copy",
        ) from error
    return list(out.hidden_states or ())[: hf_model.config.num_hidden_layers], out.logits


def _limit_lengths(model: LanguageModel, switch: tuple[str, int] | None) -> None:
    """Limit prompts of models whose rotary angles depend on the length of the prompt.

    Longrope uses other angles for a pass whose longest prompt exceeds the original length. Dynamic
    scaling depends on the longest prompt ever run, so prompts that would trigger it are refused.
    """
    if switch is None:
        return
    kind, size = switch
    if kind == "dynamic":
        model.max_positions = size
        model.notes += (f"dynamic rotary angles: prompts of more than {size} tokens are refused",)
    else:
        model.switch = size
        model.notes += (f"longrope: prompts of more than {size} tokens run separately",)


def _note_special_tokens(model: LanguageModel) -> None:
    """Add notes on special tokens that `tokenize` leaves out."""
    before, after = model.affixes
    if after:
        shown = "".join(model.strings(after))
        model.notes += (f"its tokeniser ends every text with {shown!r}, which is left out",)
    template = getattr(model.tokenizer, "chat_template", None)
    if before and isinstance(template, str):
        shown = "".join(model.strings(before))
        if shown in template or "bos_token" in template:
            model.notes += (f"its chat template begins with {shown!r}: prompts keep one copy",)


def plain_view(model: LanguageModel) -> Any:
    """An unwrapped Hugging Face model of the same tensors: no weight is copied."""
    held = tensors_of(model.hf_model)
    view = _built(model, "meta")
    absent = {name for name, _ in view.named_buffers()} - {*held}  # a bridge may leave some out
    if absent:
        view = _built(model, "cpu").to(model.device)
    view.load_state_dict({name: held[name] for name in view.state_dict()}, assign=True)
    view.tie_weights()
    for name, _ in list(view.named_buffers()):  # rotary frequencies are not in the state dict
        if name not in absent:
            place, _, leaf = name.rpartition(".")
            view.get_submodule(place)._buffers[leaf] = held[name]
    return view.eval().requires_grad_(False)


def _built(model: LanguageModel, device: str) -> Any:
    """A new Hugging Face model of the same configuration, without these weights."""
    from transformers import AutoModelForCausalLM

    options = {"dtype": model.dtype, "attn_implementation": "eager"}
    with torch.device(device), torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(deepcopy(model.hf_model.config), **options)


def unwrapped(model: LanguageModel) -> Any:
    """A new, unwrapped Hugging Face model with the same weights.

    Raises:
        InterpError: the weights or the configuration have changed since loading.
    """
    copy = deepcopy(plain_view(model))
    if plain_hash(copy) != model.hash:
        raise InterpError(
            f"copying {model.name}",
            "its weights or configuration have changed since loading",
            "load it again",
        )
    return copy


def reinitialised(model: LanguageModel, *, seed: int = 0) -> LanguageModel:
    """A model of the same configuration and tokeniser with random weights, as at initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        from transformers import AutoModelForCausalLM

        options = {"dtype": model.dtype, "attn_implementation": "eager"}
        new = AutoModelForCausalLM.from_config(deepcopy(model.hf_model.config), **options)
    name = f"{model.name} with random weights (seed {seed})"
    return wrap(new.to(model.device), model.tokenizer, name=name)


def plain_hash(hf_model: Any) -> str:
    """The hash that `wrap` gives a plain Hugging Face model."""
    return fingerprint(hf_model.state_dict(), hf_model.config.to_dict(), departures(hf_model))


def model_hash(model: LanguageModel) -> str:
    """sha256 of a model's weights and configuration, as in every key and result."""
    return model.hash


def check_engine(
    model: LanguageModel, prompt: list[int], hidden: list[Any], logits: Any
) -> str | None:
    """Compare the fast engine with Hugging Face: None if they agree, or else the reason.

    The comparison covers the residual stream before every layer, token by token, and all logits.
    """
    decoder = model.decoder
    if decoder is None:
        return None
    n = len(decoder.blocks)
    try:
        with torch.no_grad():
            base = baseline(Runner(decoder), [prompt])
            found = [base.sites[layer, "resid_pre"] for layer in range(n + 1)]
            found[n] = decoder.logits(decoder.ln_final(found[n]))
    except RuntimeError as error:
        return f"the engine fails on it: {str(error).splitlines()[0]}"
    for layer, (own, theirs) in enumerate(zip(found, [*hidden, logits], strict=True)):
        off = row_gap(own, theirs[0])
        if not off <= engine_tolerance(model.dtype):
            what = "logits" if layer == n else f"residual stream before layer {layer}"
            return f"the engine's {what} differ from Hugging Face's by {off:.1e}"
    return None


def _kept_check(path: Path, key: str) -> dict[str, Any] | None:
    """The result of an earlier check of the same weights, versions and device, or None."""
    try:
        kept, _ = read_sealed(path, "check", VERSION, key=key)
    except InterpError:
        return None
    facts = {"sites", "misread", "unbridged", "ragged", "d_mlp"}
    return kept if {*kept} == facts and {*kept["sites"]} == {*SITES} else None
