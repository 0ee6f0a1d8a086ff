"""One attention head on one prompt: where it attends, and which tokens it writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interp.core.components import within
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.runs.capture import run_with_cache


@dataclass(frozen=True, kw_only=True)
class HeadView:
    """A head on one prompt.

    pattern: (query_pos, key_pos). tokens: the prompt. promoted, suppressed: (token, logits) of the
    tokens whose logits the head raises and lowers most at the last token. direct: its direct logit
    attribution, what it adds to the mean logit of the answers minus that of the wrong answers.
    """

    pattern: torch.Tensor
    tokens: tuple[str, ...]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    direct: float | None


def view_head(
    model: LanguageModel,
    task: Task,
    layer: int | str,
    head: int | None = None,
    *,
    prompt: int = 0,
    k: int = 10,
) -> HeadView:
    """A head's attention on a clean prompt of a task, and its output read as tokens.

        logits(v) = W_U (v * weight_final / scale(resid_final)),   v = z W_O of this head

    at the last token, with the final norm's scale of the run itself, so that the contributions of
    all components add up to the logits. If a post-norm follows attention (Gemma-2, OLMo-2), a
    head's output is not a term of the stream, and the token lists are empty.

    The head is given by its layer and number, or by its label, as in `view_head(model, task,
    "L23H3")`.

    Raises:
        InterpError: no such layer, head or prompt.
    """
    if isinstance(layer, str) and head is None:
        (part,) = model.require_parts(layer, "z")
        layer, head = part.layer, part.index
    (layer,) = within([layer], model.n_layers, "layer", model.name)  # type: ignore[list-item]
    (head,) = within([head], model.n_heads, "head", model.name)  # type: ignore[list-item]
    (prompt,) = within([prompt], len(task), "prompt", task.name)
    text, last = task.pairs[prompt].clean, model.n_layers - 1
    sites = ["pattern", "z", "resid_post"]
    seen = run_with_cache(model, [text], sites=sites, layers=[layer, last])
    promoted: list[tuple[str, float]] = []
    suppressed: list[tuple[str, float]] = []
    direct = None
    decoder = model.decoder
    if decoder is not None and decoder.blocks[layer].ln1_post is None:
        weight = decoder.blocks[layer].attn.W_O[head]
        written = seen[layer, "z"][0, -1, head].to(weight) @ weight
        whole = seen[last, "resid_post"][0, -1].to(weight)
        logits = decoder.unembed @ decoder.ln_final.share(written, whole)
        for sign, found in ((1, promoted), (-1, suppressed)):
            top = (sign * logits).topk(min(k, len(logits)))
            names = model.strings(top.indices.tolist())
            values = logits[top.indices].tolist()
            found += list(zip(names, values, strict=True))
        targets = task.encode(model).targets
        right, wrong = (t[prompt][t[prompt] >= 0] for t in (targets.answers, targets.wrong))
        if len(wrong):
            direct = float(logits[right].mean() - logits[wrong].mean())
    return HeadView(
        pattern=seen[layer, "pattern"][0, :, head].float(),
        tokens=model.tokenize(text).strings,
        promoted=promoted,
        suppressed=suppressed,
        direct=direct,
    )
