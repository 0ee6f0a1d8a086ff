"""One attention head on one prompt: where it attends, and which tokens it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.core.arguments import reads_arguments, texts_of
from interp.core.components import Component, within
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.engine.architecture import Decoder
from interp.heads.direct_attribution import mean_rows
from interp.models.language_model import LanguageModel
from interp.plots.style import visible
from interp.plots.tables import Tabled
from interp.runs.capture import Activations, run_with_cache

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class HeadView(Tabled):
    """A head on one prompt.

    component: the head. pattern: (query_pos, key_pos). tokens: the prompt. promoted, suppressed:
    (token, logits) of the tokens whose logits the head raises and lowers most at the last token.
    direct: its direct logit attribution, what it adds to the mean logit of the answers minus that
    of the wrong answers; None without wrong answers, and if an answer has several tokens. sink:
    (query_pos,) the share of attention that goes to the head's sink (GPT-OSS), which is no token
    and writes nothing: a row of the pattern sums to 1 minus it; None of a head without one.
    """

    component: Component
    pattern: torch.Tensor
    tokens: tuple[str, ...]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    direct: float | None
    sink: torch.Tensor | None = None

    def __repr__(self) -> str:
        key = int(self.pattern[-1].argmax())
        direct = "" if self.direct is None else f", adds {self.direct:+z.3f} logits to the answer"
        writes = " ".join(visible(token) for token, _ in self.promoted[:3])
        return (
            f"HeadView({self.component}: the last of {len(self.tokens)} tokens attends most to "
            f"{visible(self.tokens[key])} at {key} ({self.pattern[-1, key]:z.2f}{self._sunk(-1)}); "
            f"writes {writes}{direct})"
        )

    def _sunk(self, query: int) -> str:
        return "" if self.sink is None else f", sink {self.sink[query]:z.2f}"

    def to_dataframe(self) -> DataFrame:
        """One row per token of the two lists, with the logits that the head adds to it."""
        from pandas import DataFrame

        written = [*self.promoted, *reversed(self.suppressed)]
        return DataFrame(written, columns=["token", "logits"])

    def plot(self) -> Any:
        """A Plotly heat map of its attention: queries downwards, keys across."""
        from interp.plots.components import attention_map

        mean = "" if self.sink is None else f", {float(self.sink.mean()):z.2f} of it to its sink"
        return attention_map(
            self.pattern.numpy(), self.tokens, title=f"attention of {self.component}{mean}"
        )


@reads_arguments
def view_head(
    model: LanguageModel,
    prompts: Task | Prompt,
    layer: int | str,
    head: int | None = None,
    *,
    prompt: int = 0,
    k: int = 10,
) -> HeadView:
    """A head's attention on one prompt, and its output read as tokens.

        logits(v) = W_U (v * weight_final / scale(resid_final)),   v = z W_O of this head

    at the last token, with the final norm's scale of the run itself, so that the contributions of
    all components add up to the logits. A norm behind attention (Gemma-2, OLMo-2) is applied to v
    in the same way, at its own scale in this run.

    The head is given by its layer and number, or by its label, as in `view_head(model, task,
    "L23H3")`. `prompts` is a text, or a task, whose clean prompt number `prompt` is run. Without
    known weights there are no token lists.

    Raises:
        InterpError: no such layer, head or prompt.
    """
    if isinstance(layer, str) and head is None:
        (part,) = model.require_parts(layer, "z")
        layer, head = part.layer, part.index
    (layer,) = within([layer], model.n_layers, "layer", model.name)  # type: ignore[list-item]
    (head,) = within([head], model.n_heads, "head", model.name)  # type: ignore[list-item]
    texts = texts_of(prompts)
    name = prompts.name if isinstance(prompts, Task) else "the prompts given"
    (prompt,) = within([prompt], len(texts), "prompt", name)
    last = model.n_layers - 1
    seen = run_with_cache(
        model, texts[prompt], sites=["pattern", "z", "resid_post"], layers=[layer, last]
    )
    promoted: list[tuple[str, float]] = []
    suppressed: list[tuple[str, float]] = []
    direct = None
    if (decoder := model.decoder) is not None:
        z, whole = seen[layer, "z"][0, -1], seen[last, "resid_post"][0, -1]
        logits = decoder.head_logits(layer, head, z, whole)
        for sign, found in ((1, promoted), (-1, suppressed)):
            top = (sign * logits).topk(min(k, len(logits)))
            names = model.strings(top.indices.tolist())
            values = logits[top.indices].tolist()
            found += list(zip(names, values, strict=True))
        if isinstance(prompts, Task):
            direct = _direct(model, decoder, prompts, seen, layer, head, prompt)
    pattern = seen[layer, "pattern"][0, :, head].float()
    sunk = decoder is not None and decoder.blocks[layer].attn.sinks is not None
    return HeadView(
        component=Component(layer, "z", head),
        pattern=pattern,
        sink=(1 - pattern.sum(-1)).clamp(min=0) if sunk else None,
        tokens=seen.tokens[0],
        promoted=promoted,
        suppressed=suppressed,
        direct=direct,
    )


def _direct(
    model: LanguageModel,
    decoder: Decoder,
    task: Task,
    seen: Activations,
    layer: int,
    head: int,
    prompt: int,
) -> float | None:
    """The head's direct logit attribution; None without wrong answers of one token each."""
    targets = task.encode(model, strings=True).targets.select(torch.tensor([prompt]))
    if targets.strings is not None or bool((targets.wrong < 0).all()):
        return None
    right, wrong = (mean_rows(decoder.unembed, some) for some in (targets.answers, targets.wrong))
    whole = seen[len(decoder.blocks) - 1, "resid_post"][:, -1]
    along = decoder.ln_final.reader(whole, right - wrong)
    return float(decoder.blocks[layer].head_values(seen[layer, "z"][:, -1], along)[0, head])
