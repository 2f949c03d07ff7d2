"""Generation: prompts in chunks through the KV cache, then a step a token, streamed.

`sampling` chooses tokens, `generation` holds what came out.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptoss_hooks.edits import Edits
from gptoss_hooks.root import HookedRoot
from gptoss_workbench import decoder, harmony, spare
from gptoss_workbench.decoder import Decoder
from gptoss_workbench.generation import Generation, Piece, Texts
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.sampling import Draw, Sampling, asked
from gptoss_workbench.spare import Spare
from gptoss_workbench.text import TextMixin, pad
from gptoss_workbench.tokenizer import Tokenizer

INTERRUPTED = "interrupted"
TEXT_TOKENS, CHAT_TOKENS = 10, 512
"""Most new tokens of a text and of a conversation where the caller names none."""


class _End(NamedTuple):
    """Where one row stops."""

    stops: frozenset[int]
    max_new_tokens: int
    room: int
    """tokens the context still has place for"""


class GenerateMixin(TextMixin, HookedRoot):
    """`generate` and `stream`, with TransformerLens's argument names."""

    generation_config: dict[str, Any]
    last_generation: Generation | None
    spare: Spare

    def render(self, messages: Any, **options: Any) -> list[int]:
        """Messages to prompt tokens, in the form this checkpoint was trained on."""
        options = {name: value for name, value in options.items() if value is not None}
        return harmony.render_tokens(messages, self.require_tokenizer(), **options)

    def generate(
        self,
        input: Any = None,
        max_new_tokens: int | None = None,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = False,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool = False,
        padding_side: str | None = None,
        return_type: str | None = "input",
        verbose: bool = False,
        return_cache: bool = False,
        names_filter: Any = None,
        *,
        attention_mask: Tensor | None = None,
        messages: Any = None,
        tools: Any = None,
        effort: str | None = None,
        date: str | None = None,
        seed: int | None = None,
        stream: Callable[[Piece], None] | None = None,
        chunk: int = 1024,
        edits: Edits = (),
    ) -> Any:
        """Continue a prompt or a conversation.

        model.generate(messages=[{"role": "user", "content": "What is 2 + 2?"}]).final

        Args:
            input: text, tokens [batch, pos] (rows of different length as lists or with
                `attention_mask`), or a Generation to go on with.
            messages: a harmony conversation instead of `input`; the result is a Generation.
            max_new_tokens: None is 10 for `input` and 512 for `messages`.
            stop_at_eos: stop a row at <|return|>, <|call|>, <|endoftext|> or the config's eos.
            do_sample: draw tokens, as temperature (0 is greedy), top_k and top_p say; False is
                greedy, and warns if one of them is given.
            return_type: "input" (same kind as the input), "tokens", "str" or "generation".
            return_cache: return (result, ActivationCache), from one clean pass over the whole text.
            seed: of sampling; drawn and kept in the Generation when None.
            stream: called with every Piece as it is drawn.
            chunk: prompt tokens run at a time.
            edits: interventions, in the order they act; channels= follows what is being written.

        On KeyboardInterrupt what was written so far is kept in `model.last_generation`.
        """
        kind = _result_kind(input, messages, return_type)
        if kind in ("str", "strs"):
            self.require_tokenizer()
        sampling = asked(do_sample, temperature, top_k, top_p, freq_penalty)
        prompts = self._prompts(
            input, attention_mask, messages, prepend_bos,
            tools=tools, effort=effort, date=date,
        )  # fmt: skip
        stops = self._stops(stop_at_eos, eos_token_id)
        out = self._begin(prompts, sampling, seed)
        show = _Shower(self.tokenizer, stream, verbose, len(prompts))
        try:
            ends = self._ends(out, _most(max_new_tokens, messages), stops)
            for drawn in self._steps(out, ends, sampling, use_past_kv_cache, chunk, edits):
                show(drawn)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note("what was generated so far is in model.last_generation")
            raise
        result = _as(kind, out, self.tokenizer)
        return (result, self._recomputed(out, names_filter, edits)) if return_cache else result

    def stream(
        self,
        input: Any = None,
        max_new_tokens: int | None = None,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = False,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        *,
        attention_mask: Tensor | None = None,
        messages: Any = None,
        tools: Any = None,
        effort: str | None = None,
        date: str | None = None,
        seed: int | None = None,
        chunk: int = 1024,
        edits: Edits = (),
    ) -> Iterator[Piece]:
        """Yield a Piece for every token as it is drawn; arguments are those of `generate`.

        for piece in model.stream(messages=[...], max_new_tokens=100): print(piece.text, end="")
        """
        sampling = asked(do_sample, temperature, top_k, top_p, freq_penalty)
        prompts = self._prompts(
            input, attention_mask, messages, tools=tools, effort=effort, date=date
        )
        stops = self._stops(stop_at_eos, eos_token_id)
        out = self._begin(prompts, sampling, seed)
        texts = Texts(self.tokenizer, len(prompts))
        ends = self._ends(out, _most(max_new_tokens, messages), stops)
        for drawn in self._steps(out, ends, sampling, True, chunk, edits):
            for row, token in drawn:
                yield Piece(row, token, texts.add(row, token))

    def _recomputed(self, out: Generation, names_filter: Any, edits: Edits) -> Any:
        """Activations of prompts and completions, from one forward pass under the same edits."""
        with torch.no_grad():
            return self.run_with_cache(
                out.tokens, attention_mask=out.mask, return_type=None,
                names_filter=names_filter, edits=edits,
            )[1]  # fmt: skip

    def _begin(self, prompts: list[list[int]], sampling: Sampling, seed: int | None) -> Generation:
        """An empty result, kept in `last_generation` while it is filled."""
        if seed is None and sampling.do_sample:
            seed = int(torch.randint(1 << 31, ()))
        rows = [INTERRUPTED] * len(prompts)
        out = Generation(prompts, [[] for _ in prompts], rows, self.pad_id, seed, self.tokenizer)
        self.last_generation = out
        return out

    def _prompts(
        self,
        input: Any,
        mask: Tensor | None,
        messages: Any,
        prepend_bos: bool = False,
        **options: Any,
    ) -> list[list[int]]:
        if (input is None) == (messages is None):
            raise ValueError("generate: give either input= or messages=")
        if messages is not None:
            return [self.render(messages, **options)]
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"generate: {', '.join(given)}= is for messages=, not a bare prompt")
        batch = self.read(input, mask, "left", prepend_bos)
        rows = [row[keep].tolist() for row, keep in zip(batch.tokens, batch.mask, strict=True)]
        if [] in rows:
            raise ValueError(f"generate: row {rows.index([])} is nothing but padding")
        return rows

    def _stops(self, stop: bool, eos: int | list[int] | None) -> frozenset[int]:
        if not stop:
            return frozenset()
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
        if self.tokenizer is not None:
            return frozenset(self.tokenizer.stop_ids(self.generation_config))
        listed = self.generation_config.get("eos_token_id", self.config.eos_token_id) or ()
        return frozenset([listed] if isinstance(listed, int) else listed)

    def _ends(self, out: Generation, max_new_tokens: int, stops: frozenset[int]) -> list[_End]:
        """Where each row stops; raises for a prompt that is too long."""
        if max_new_tokens < 0:
            raise ValueError(f"generate: max_new_tokens must be >= 0; got {max_new_tokens}")
        self.check_length(max(map(len, out.prompts)))
        limit = self.config.max_position_embeddings
        return [_End(stops, max_new_tokens, limit - len(prompt)) for prompt in out.prompts]

    def _steps(
        self,
        out: Generation,
        ends: list[_End],
        sampling: Sampling,
        use_cache: bool,
        chunk: int,
        edits: Edits,
    ) -> Iterator[list[tuple[int, int]]]:
        """Draw tokens step by step into `out`; yields (row, token) of rows still running."""
        if chunk < 1:
            raise ValueError(f"generate: chunk must be >= 1; got {chunk}")
        tokens, mask = pad(out.prompts, self.pad_id, "left")
        out.stopped = [self._why(end, []) for end in ends]
        draw = Draw(sampling, out.seed, len(out.prompts))
        room = tokens.shape[1] + max(min(end.max_new_tokens, end.room) for end in ends)
        kept = self.spare.take(self, len(tokens), room)
        cache: Any = KVCache(self.config, room=room) if use_cache else None
        try:
            while running := [row for row, why in enumerate(out.stopped) if why == INTERRUPTED]:
                with torch.no_grad(), self.edited(*edits), self.being_written():
                    logits = self._next_logits(tokens, mask, cache, chunk)
                    if isinstance(cache, KVCache) and decoder.worthwhile(self):
                        cache = spare.begin(self, kept, cache, room)
                    chosen = draw(logits, out.completions)
                for row in running:
                    out.completions[row].append(chosen[row])
                    out.stopped[row] = self._why(ends[row], out.completions[row])
                yield [(row, chosen[row]) for row in running]
                was_on = torch.zeros_like(mask[:, :1])
                was_on[running] = True
                step = torch.tensor(chosen)[:, None]
                tokens = step if use_cache else torch.cat([tokens, step], 1)
                mask = was_on if use_cache else torch.cat([mask, was_on], 1)
        finally:
            if isinstance(cache, Decoder):
                self.spare.keep(cache)

    def _why(self, end: _End, written: list[int]) -> str:
        """Why a row is at its end; while it is not, what an interrupt would leave there."""
        if written and written[-1] in end.stops:
            return self._shown(written[-1])
        if len(written) == end.max_new_tokens:
            return "length"
        return "context" if len(written) == end.room else INTERRUPTED

    def _next_logits(self, tokens: Tensor, mask: Tensor, cache: Any, chunk: int) -> Tensor:
        """Logits [batch, vocab] after the last token, the prompt taken `chunk` tokens at a time."""
        if cache is None:
            return self(tokens, attention_mask=mask, logits_to_keep=1)[:, -1]
        if isinstance(cache, Decoder):
            return cache.next_logits(tokens, mask)
        *before, last = zip(tokens.split(chunk, 1), mask.split(chunk, 1), strict=True)
        for part, seen in before:
            self(part, return_type=None, attention_mask=seen, past_key_values=cache)
        part, seen = last
        kept = self(part, attention_mask=seen, past_key_values=cache, logits_to_keep=1)
        return kept[:, -1]

    def _shown(self, token: int) -> str:
        return self.tokenizer.decode([token]) if self.tokenizer is not None else str(token)


class _Shower:
    """Hands drawn tokens to a callback, and prints them when verbose."""

    def __init__(self, tokenizer: Tokenizer | None, stream: Any, verbose: bool, rows: int):
        self.texts, self.callback, self.verbose = Texts(tokenizer, rows), stream, verbose

    def __call__(self, drawn: list[tuple[int, int]]) -> None:
        if self.callback is None and not self.verbose:
            return
        for row, token in drawn:
            piece = Piece(row, token, self.texts.add(row, token))
            if self.callback is not None:
                self.callback(piece)
            if self.verbose and row == 0:
                print(piece.text, end="", flush=True)


def _most(max_new_tokens: int | None, messages: Any) -> int:
    """Most tokens to write: TransformerLens's default for a text, room to think for a chat."""
    if max_new_tokens is not None:
        return max_new_tokens
    return TEXT_TOKENS if messages is None else CHAT_TOKENS


def _result_kind(input: Any, messages: Any, return_type: str | None) -> str:
    if return_type not in ("input", "tokens", "str", "generation", None):
        raise ValueError(
            f"return_type is 'input', 'tokens', 'str' or 'generation'; got {return_type!r}"
        )
    if return_type not in ("input", None):
        return return_type
    if messages is not None or isinstance(input, Generation):
        return "generation"
    if isinstance(input, str):
        return "str"
    if isinstance(input, list) and input and isinstance(input[0], str):
        return "strs"
    return "tokens"


def _as(kind: str, out: Generation, tokenizer: Tokenizer | None) -> Any:
    if kind == "generation":
        return out
    if kind == "tokens":
        return out.tokens
    assert tokenizer is not None
    rows = zip(out.prompts, out.completions, strict=True)
    texts = [tokenizer.decode(prompt + completion) for prompt, completion in rows]
    return texts if kind == "strs" or len(texts) > 1 else texts[0]
