"""Next-token losses of texts, with and without an intervention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.core.arguments import Positions, marks_of, places_of, reads_arguments, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel


@reads_arguments
def text_losses(
    model: LanguageModel,
    texts: Task | Prompt | Sequence[Prompt],
    *,
    starts: Positions | None = None,
) -> Tensor:
    """Mean negative log-likelihood of each text's tokens from its start on, in nats: (n,) float64.

    Its exponential is the perplexity. A change in force (`intervene`, `steer`) applies.

    Args:
        model: any model.
        texts: texts of at least two tokens.
        starts: the first token of each text that is scored, such as the first token of a reply
            after its prompt (see `interp.core.arguments.Positions`). By default the second token,
            which is the first that can be predicted.

    Raises:
        InterpError: no texts, one of a single token, or a start that is not inside its text, or
            is its first token.
    """
    given = [model.tokenize(text) for text in texts_of(texts)]
    rows = [text.tokens for text in given]
    if min(map(len, rows), default=0) < 2:
        raise InterpError(f"losses of {len(rows)} texts", "none, or one of one token", "give more")
    first = places_of(1 if starts is None else starts, given, marks_of(texts), label="text")
    if not all(first):
        raise InterpError(
            f"losses of {len(rows)} texts from tokens {first[:5]} on",
            f"texts of {[len(row) for row in rows][:5]} tokens",
            "give one start for each text, after its first token and before its end",
        )
    losses = torch.zeros(len(rows), dtype=torch.float64)
    with torch.no_grad():
        for batch, logits in model.run(rows):
            for row, prompt in enumerate(batch.prompts.tolist()):
                begin = int(batch.first[row])
                scored = slice(begin + first[prompt], begin + len(rows[prompt]))
                wide = logits[row, scored.start - 1 : scored.stop - 1]
                logs = (wide if wide.dtype == torch.float64 else wide.float()).log_softmax(-1)
                losses[prompt] = -logs.gather(1, batch.tokens[row, scored][:, None]).mean()
    return losses
