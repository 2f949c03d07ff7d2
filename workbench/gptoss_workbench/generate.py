"""Generation: prompts in chunks through the KV cache, then a step a token, streamed.

`sampling` chooses tokens, `generation` holds what came out.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_workbench import harmony
from gptoss_workbench.generation import Generation, Piece, Texts
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.sampling import Draw, Sampling
from gptoss_workbench.text import Text, TextMixin, pad
from gptoss_workbench.tokenizer import Tokenizer


class GenerateMixin(TextMixin, nn.Module):
    """`generate` and `stream`, with TransformerLens's argument names."""

    generation_config: dict[str, Any]
    last_generation: Generation | None

    def render(self, messages: Any, **options: Any) -> list[int]:
        """Messages to prompt tokens, in the form this checkpoint was trained on."""
        options = {name: value for name, value in options.items() if value is not None}
        return harmony.render_tokens(messages, self.require_tokenizer(), **options)

    def generate(
        self,
        input: Text | Tensor | None = None,
        max_new_tokens: int = 10,
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
        *,
        attention_mask: Tensor | None = None,
        messages: Any = None,
        tools: Any = None,
        effort: str | None = None,
        date: str | None = None,
        seed: int | None = None,
        stream: Callable[[Piece], None] | None = None,
        chunk: int = 1024,
    ) -> Any:
        """Continue a prompt or a conversation.

        model.generate(messages=[{"role": "user", "content": "What is 2 + 2?"}]).final

        Args:
            input: text, or tokens [batch, pos] (rows of different length with `attention_mask`).
            messages: a harmony conversation instead of `input`; the result is a Generation.
            stop_at_eos: stop a row at <|return|>, <|call|>, <|endoftext|> or the config's eos.
            temperature: 0 is greedy, as is do_sample=False.
            return_type: "input" (same kind as the input), "tokens", "str" or "generation".
            seed: of sampling; drawn and kept in the Generation when None.
            stream: called with every Piece as it is drawn.
            chunk: prompt tokens run at a time.

        On KeyboardInterrupt what was written so far is kept in `model.last_generation`.
        """
        sampling = Sampling(do_sample, temperature, top_k, top_p, freq_penalty)
        sampling.check()
        kind = _result_kind(input, messages, return_type)
        if kind in ("str", "strs"):
            self.require_tokenizer()
        prompts = self._prompts(
            input, attention_mask, messages, prepend_bos,
            tools=tools, effort=effort, date=date,
        )  # fmt: skip
        if seed is None and sampling.do_sample:
            seed = int(torch.randint(1 << 31, ()))
        stops = self._stops(stop_at_eos, eos_token_id)
        out = Generation(
            prompts, [[] for _ in prompts], ["length"] * len(prompts), self.pad_id, seed,
            self.tokenizer,
        )  # fmt: skip
        self.last_generation = out
        show = _Shower(self.tokenizer, stream, verbose, len(prompts))
        try:
            steps = self._steps(out, max_new_tokens, sampling, stops, use_past_kv_cache, chunk)
            for drawn in steps:
                show(drawn)
        except KeyboardInterrupt as interrupt:
            out.stopped = [why or "interrupted" for why in _ended(out, stops)]
            interrupt.add_note("what was generated so far is in model.last_generation")
            raise
        return _as(kind, out, self.tokenizer)

    def stream(self, input: Any = None, max_new_tokens: int = 10, **options: Any):
        """Yield a Piece for every token as it is drawn; options are those of `generate`.

        for piece in model.stream(messages=[...], max_new_tokens=100): print(piece.text, end="")
        """
        names = ("do_sample", "temperature", "top_k", "top_p", "freq_penalty")
        sampling = Sampling(**{n: options.pop(n) for n in names if n in options})
        sampling.check()
        seed, chunk = options.pop("seed", None), options.pop("chunk", 1024)
        stop, eos = options.pop("stop_at_eos", True), options.pop("eos_token_id", None)
        stops = self._stops(stop, eos)
        mask, messages = options.pop("attention_mask", None), options.pop("messages", None)
        prompts = self._prompts(input, mask, messages, options.pop("prepend_bos", False), **options)
        if seed is None and sampling.do_sample:
            seed = int(torch.randint(1 << 31, ()))
        empty: list[list[int]] = [[] for _ in prompts]
        reasons = ["length"] * len(prompts)
        out = Generation(prompts, empty, reasons, self.pad_id, seed, self.tokenizer)
        self.last_generation = out
        texts = Texts(self.tokenizer, len(prompts))
        for drawn in self._steps(out, max_new_tokens, sampling, stops, True, chunk):
            for row, token in drawn:
                yield Piece(row, token, texts.add(row, token))

    def _prompts(
        self,
        input: Any,
        mask: Tensor | None,
        messages: Any,
        prepend_bos: bool,
        **options: Any,
    ) -> list[list[int]]:
        if (input is None) == (messages is None):
            raise ValueError("generate: give either input= or messages=")
        if messages is not None:
            return [self.render(messages, **options)]
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"generate: {', '.join(given)}= is for messages=, not a bare prompt")
        batch = self.read(input, mask, "left", prepend_bos)
        return [row[keep].tolist() for row, keep in zip(batch.tokens, batch.mask, strict=True)]

    def _stops(self, stop: bool, eos: int | list[int] | None) -> frozenset[int]:
        if not stop:
            return frozenset()
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
        if self.tokenizer is not None:
            return frozenset(self.tokenizer.stop_ids(self.generation_config))
        listed = self.generation_config.get("eos_token_id", self.config.eos_token_id) or ()
        return frozenset([listed] if isinstance(listed, int) else listed)

    def _steps(
        self,
        out: Generation,
        max_new_tokens: int,
        sampling: Sampling,
        stops: frozenset[int],
        use_cache: bool,
        chunk: int,
    ) -> Iterator[list[tuple[int, int]]]:
        """Draw tokens step by step into `out`; yields (row, token) of rows still running."""
        batch = pad(out.prompts, self.pad_id, "left")
        tokens, mask = (each.to(self.cfg.device) for each in batch)
        longest = max(map(len, out.prompts))
        self.check_length(longest)
        room = self.config.max_position_embeddings - longest
        draw = Draw(sampling, out.seed, len(out.prompts))
        running = [True] * len(out.prompts)
        cache = KVCache(self.config) if use_cache else None
        for _ in range(min(max_new_tokens, room)):
            with torch.no_grad():
                logits = self._next_logits(tokens, mask, cache, chunk)
                chosen = draw(logits, out.completions)
            drawn = [(row, chosen[row]) for row, on in enumerate(running) if on]
            for row, token in drawn:
                out.completions[row].append(token)
                if token in stops:
                    running[row] = False
                    out.stopped[row] = self._shown(token)
            yield drawn
            if not any(running):
                return
            was_on = torch.zeros(len(running), 1, dtype=torch.bool, device=mask.device)
            was_on[[row for row, _ in drawn]] = True
            step = torch.tensor(chosen, device=tokens.device)[:, None]
            tokens = step if use_cache else torch.cat([tokens, step], 1)
            mask = was_on if use_cache else torch.cat([mask, was_on], 1)
        if room < max_new_tokens:
            out.stopped = [
                "context" if on else why for on, why in zip(running, out.stopped, strict=True)
            ]

    def _next_logits(self, tokens: Tensor, mask: Tensor, cache: Any, chunk: int) -> Tensor:
        """Logits [batch, vocab] after the last token, the prompt taken `chunk` tokens at a time."""
        if cache is None:
            return self(tokens, attention_mask=mask, logits_to_keep=1)[:, -1]
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


def _ended(out: Generation, stops: frozenset[int]) -> list[str | None]:
    done = zip(out.completions, out.stopped, strict=True)
    return [why if row and row[-1] in stops else None for row, why in done]


def _result_kind(input: Any, messages: Any, return_type: str | None) -> str:
    if return_type not in ("input", "tokens", "str", "generation", None):
        raise ValueError(
            f"return_type is 'input', 'tokens', 'str' or 'generation'; got {return_type!r}"
        )
    if return_type not in ("input", None):
        return return_type
    if messages is not None:
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
