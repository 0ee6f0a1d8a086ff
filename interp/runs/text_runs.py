"""Greedy texts in batches: the plain run with its cache, and changed runs where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.core.errors import InterpError
from interp.core.run_options import Progress
from interp.core.schema import Index, checked
from interp.engine.architecture import Decoder
from interp.engine.decode import Stream
from interp.engine.forward import Runner
from interp.engine.memory import keep_freed_memory
from interp.models.language_model import LanguageModel
from interp.runs.change import Change, Where


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What followed one prompt.

    `tokens` are the new tokens, without the end token. `stopped` says whether the text ended before
    the largest number of tokens. `fired` holds the positions, counted from the prompt's first
    token, whose next token was taken from the changed run.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    stopped: bool
    fired: tuple[int, ...]

    def __repr__(self) -> str:
        end = "it ended" if self.stopped else "cut"
        return f"Generation({self.text!r:.200}, {len(self.tokens)} tokens, {end})"


def in_batches(
    new_run: Callable[[], TextRun],
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    rows: int,
    progress: Progress | None,
) -> list[list[Generation]]:
    """The texts of all prompts, in their order, for each change of the run.

    Prompts of similar length share a batch; batches are about equally large.

    Raises:
        InterpError: no token asked for, or more than the model has positions.
    """
    run, done = new_run(), 0
    require_length(run.model, prompts, max_new_tokens)
    keep_freed_memory()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    made: dict[tuple[int, int], Generation] = {}
    with torch.no_grad():
        for some in np.array_split(np.array(order), -(-len(order) // rows)) if order else []:
            made |= run(some.tolist(), [prompts[i] for i in some], max_new_tokens)
            done += len(some)
            if progress is not None:
                progress(done, len(order))
    ways = range(len(run.changes))
    return [[made[i, way] for i in range(len(prompts))] for way in ways]


def require_length(
    model: LanguageModel, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> None:
    """Refuse, by an `InterpError`, no new token or texts longer than the model has positions."""
    if checked(Index, max_new_tokens, "max_new_tokens") < 1:
        raise InterpError(f"{max_new_tokens} new tokens", "no text", "ask for at least one")
    longest = max(map(len, prompts), default=0) + max_new_tokens
    decoder = model.decoder
    limit = model.max_positions if decoder is None else decoder.max_positions
    if prompts and limit is not None and longest > limit:
        raise InterpError(
            f"{max_new_tokens} new tokens",
            f"{longest} in all, {model.name} has {limit} positions",
            "lower max_new_tokens or shorten the prompts",
        )


@dataclass(frozen=True, kw_only=True)
class _Text:
    """An unfinished text: its prompt's number and length, and the changes that lead to it."""

    number: int
    start: int
    tokens: tuple[int, ...]
    ways: tuple[int, ...]
    fired: tuple[int, ...] = ()


class TextRun:
    """One batch: the plain stream, and the changed ones where they are needed.

    A subclass may replace the plain run by another: see `advance`.
    """

    crowded = 0.9
    """Finished rows are dropped when at most this share of the rows continues."""

    def __init__(
        self,
        model: LanguageModel,
        changes: Sequence[Change | None],
        fires: int | None,
        where: Where,
        stop: Sequence[str],
    ) -> None:
        self.model, self.decoder = model, model.require_decoder("generating")
        self.runner = Runner(self.decoder)
        self.changes, self.fires, self.where, self.stop = changes, fires, where, stop
        layers = [change.first_layer for change in changes if change is not None]
        self.first = min(layers, default=None)
        self.ends = end_tokens(model)

    def __call__(
        self, numbers: list[int], prompts: list[tuple[int, ...]], most: int
    ) -> dict[tuple[int, int], Generation]:
        """Generations by prompt number and change."""
        ways = tuple(range(len(self.changes)))
        rows: list[_Text | None] = [
            _Text(number=number, start=len(prompt), tokens=prompt, ways=ways)
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        tokens, counts = self._start(numbers, prompts, most)
        done: dict[tuple[int, int], Generation] = {}
        for step in range(most):
            last = self.advance(tokens, counts)
            after: list[tuple[int, _Text]] = []
            for row, text, token in self._next(rows, last):
                text, stopped = self._longer(text, token)
                if stopped or step == most - 1:
                    done |= {
                        (text.number, way): self._made(text, way, stopped) for way in text.ways
                    }
                else:
                    after.append((row, text))
            if not after:
                break
            parents = [row for row, _ in after]
            # Dropping rows copies the past of the others; so does a text that splits in two.
            if len(after) <= self.crowded * len(rows) or len(set(parents)) < len(parents):
                self._keep(torch.tensor(parents, device=self.runner.device))
                rows = [text for _, text in after]
            else:
                rows = [None] * len(rows)
                for row, text in after:
                    rows[row] = text
            following = [0 if text is None else text.tokens[-1] for text in rows]
            tokens = torch.tensor(following, device=self.runner.device)[:, None]
            counts = torch.ones_like(tokens[:, 0])
        return done

    def _start(
        self, numbers: list[int], prompts: list[tuple[int, ...]], most: int
    ) -> tuple[Tensor, Tensor]:
        """Empty streams, and the prompts as padded tokens with their lengths."""
        runner, n = self.runner, len(prompts)
        tokens, counts = padded_tokens(prompts, runner.device)
        room = tokens.shape[1] + most
        self.names = torch.tensor(numbers, device=runner.device)
        self.plain = Stream.empty(runner, n, room)
        self.past, self.changed = None, {}
        if self.first is not None:
            self.past = self.decoder.unembed.new_zeros(n, room, self.decoder.d_model)
            if self.where == "all":
                self.changed = {
                    way: Stream.empty(runner, n, room, first=self.first)
                    for way, change in enumerate(self.changes)
                    if change is not None
                }
        return tokens, counts

    def _next(self, rows: list[_Text | None], last: Tensor) -> Iterator[tuple[int, _Text, int]]:
        """(row, text, next token) of every unfinished row; several if changes differ there."""
        plain = self.decoder.logits(self.decoder.ln_final(last)).argmax(-1).tolist()
        due = {row: text for row, text in enumerate(rows) if text is not None and self._due(text)}
        changed: dict[tuple[int, int], int] = {}
        for way, change in enumerate(self.changes):
            mine = [row for row, text in due.items() if way in text.ways]
            if change is not None and mine:
                at = torch.tensor(mine, device=last.device)
                logits = self._changed_logits(at, way, change)
                changed |= {
                    (row, way): token
                    for row, token in zip(mine, logits.argmax(-1).tolist(), strict=True)
                }
        for row, text in enumerate(rows):
            if text is None:
                continue
            if row in due:
                text = replace(text, fired=(*text.fired, len(text.tokens) - 1))
            split: dict[int, list[int]] = {}
            for way in text.ways:
                token = changed[row, way] if (row, way) in changed else plain[row]
                split.setdefault(token, []).append(way)
            for token, ways in split.items():
                yield row, replace(text, ways=tuple(ways)), token

    def _longer(self, text: _Text, token: int) -> tuple[_Text, bool]:
        """The text with one more token, and whether this token ends it."""
        if token in self.ends:
            return text, True
        text = replace(text, tokens=(*text.tokens, token))
        return text, stops(self.model, text.tokens[text.start :], self.stop)

    def _made(self, text: _Text, way: int, stopped: bool) -> Generation:
        new = text.tokens[text.start :]
        return Generation(
            prompt=text.tokens[: text.start],
            tokens=new,
            text=text_of(self.model, new),
            stopped=stopped,
            fired=() if self.changes[way] is None else text.fired,
        )

    def _due(self, text: _Text) -> bool:
        return self.first is not None and self.fires in (None, text.tokens[-1])

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """The plain run over new tokens; stores the states from which changed runs restart."""
        start = self.plain.lengths.clone()
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (start[:, None] + steps).clamp(max=self.decoder.max_positions - 1)
        x = embedded(self.decoder, tokens, start)
        seen = {} if self.first is None else {self.first: x}
        last = self.plain.extend(x, counts, seen=seen)
        if self.past is not None and self.first is not None:
            real = steps < counts[:, None]
            row = torch.arange(len(tokens), device=x.device)[:, None].expand_as(real)
            self.past[row[real], positions[real]] = seen[self.first][real]
        return last

    def _changed_logits(self, rows: Tensor, way: int, change: Change) -> Tensor:
        """Logits after the last token of some rows, in a run with a change in force."""
        assert self.past is not None
        assert self.first is not None
        lengths = self.plain.lengths[rows]
        if way in self.changed:
            stream, at = self.changed[way], rows
        else:
            back = int(self.where)
            if int(lengths.min()) < back:
                raise InterpError(f"changing the last {back} tokens", "a shorter text", "lower it")
            longest = int(lengths.max())
            stream = self.plain.select(rows, first=self.first, back=back, capacity=longest)
            at = torch.arange(len(rows), device=rows.device)
        start = stream.lengths[at]
        counts = lengths - start
        steps = torch.arange(int(counts.max()), device=rows.device)
        columns = start[:, None] + steps
        x = self.past[rows[:, None], columns.clamp(max=self.past.shape[1] - 1)]
        ends = torch.zeros(int(self.names.max()) + 1, dtype=torch.long, device=rows.device)
        ends[self.names[rows]] = lengths - 1
        last = stream.extend(
            x,
            counts,
            rows=at,
            changes=change.decoding(ends, steps < counts[:, None]),
            names=self.names[rows],
        )
        return self.decoder.logits(self.decoder.ln_final(last))

    def _keep(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        self.names = self.names[rows]
        self.plain = self.plain.select(rows, first=0)
        if self.past is not None:
            self.past = self.past[rows]
        for way, stream in self.changed.items():
            self.changed[way] = stream.select(rows, first=stream.first)


class ChangedText(TextRun):
    """Texts whose every token comes from a changed run, which replaces the plain run.

    Tokens are changed once, when they are run, so a change must not depend on the text's length.
    `extend` takes the arguments of `extended`, except for the change.
    """

    def __init__(
        self, model: LanguageModel, extend: Callable[..., Tensor], stop: Sequence[str]
    ) -> None:
        super().__init__(model, (None,), None, 1, stop)
        self.extend = extend

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """The changed run over new tokens."""
        return self.extend(self.plain, tokens, counts, self.names)

    def _due(self, text: _Text) -> bool:
        return True

    def _made(self, text: _Text, way: int, stopped: bool) -> Generation:
        return replace(super()._made(text, way, stopped), fired=text.fired)


def padded_tokens(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, longest) tokens of rows, padded with 0 at the end, and the (rows,) lengths."""
    tokens = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    return tokens.to(device), torch.tensor([len(row) for row in rows], device=device)


def embedded(decoder: Decoder, tokens: Tensor, start: Tensor) -> Tensor:
    """(rows, tokens, d_model) embeddings of padded tokens whose rows begin at these positions."""
    positions = start[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
    positions = positions.clamp(max=decoder.max_positions - 1)  # of padding
    return decoder.embed(tokens.flatten(), positions.flatten()).view(*tokens.shape, -1)


def extended(
    stream: Stream, tokens: Tensor, counts: Tensor, names: Tensor, change: Change
) -> Tensor:
    """The final residual after new tokens of the rows called `names`, with a change in force."""
    x = embedded(stream.runner.decoder, tokens, stream.lengths)
    real = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
    # A changed value does not depend on the end of the text, which is not known yet.
    ends = torch.zeros(int(names.max()) + 1, dtype=torch.long, device=tokens.device)
    return stream.extend(x, counts, changes=change.decoding(ends, real), names=names)


def text_of(model: LanguageModel, tokens: Sequence[int]) -> str:
    """Tokens as text."""
    if model.tokenizer is None:
        return " ".join(f"<{token}>" for token in tokens)
    return model.tokenizer.decode(list(tokens))


def stops(model: LanguageModel, new: Sequence[int], marks: Sequence[str]) -> bool:
    """Whether a text holds one of some marks."""
    text = text_of(model, new) if marks else ""
    return any(mark in text for mark in marks)


def end_tokens(model: LanguageModel) -> set[int]:
    """Tokens that end a text, by the tokeniser and by the model's configuration."""
    ends = getattr(model.hf_model.generation_config, "eos_token_id", None)
    found = set(ends) if isinstance(ends, list) else {ends}
    found.add(getattr(model.tokenizer, "eos_token_id", None))
    return {token for token in found if token is not None and token < model.d_vocab}
