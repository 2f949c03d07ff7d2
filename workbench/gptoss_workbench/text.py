"""Between text and tokens: what a model accepts as input, checked with helpful messages."""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gptoss_hooks.root import InputSize
from gptoss_workbench import harmony
from gptoss_workbench.config import Config
from gptoss_workbench.lens_config import LensConfig
from gptoss_workbench.tokenizer import Tokenizer

Text = str | list[str]


class Batch(NamedTuple):
    """Rows of tokens; padding is where the mask is False."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]


def pad(rows: list[list[int]], filler: int, side: str) -> Batch:
    """Rows of different length as one batch, padded on the left or the right."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side is 'left' or 'right'; got {side!r}")
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = True
    return Batch(tokens, mask)


def as_mask(mask: Any, shape: torch.Size, device: torch.device) -> Bool[Tensor, "batch pos"]:
    """A mask as bools on the device, cut to the last `shape[1]` columns; None is all real."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    mask = torch.as_tensor(mask, device=device).bool()
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        raise ValueError(f"attention_mask: expected {tuple(shape)}; got {tuple(mask.shape)}")
    return mask[:, -shape[1] :]


class TextMixin:
    """to_tokens and its relatives, with TransformerLens's argument names."""

    name: str
    config: Config
    cfg: LensConfig
    tokenizer: Tokenizer | None

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer, or one clear message about what is missing."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer.json in its folder, so it takes tokens, not text. "
                "Copy tokenizer.json from the released checkpoint into the folder, or set "
                "model.tokenizer = Tokenizer.o200k_harmony() (pip install gptoss-workbench[vocab])."
            )
        return self.tokenizer

    def encode_batch(
        self, text: Text, padding_side: str | None = None, prepend_bos: bool = False
    ) -> Batch:
        """Text as padded rows with their mask (padded on the right unless told)."""
        rows = self._encode([text] if isinstance(text, str) else text, prepend_bos)
        if not rows or not all(rows):
            raise ValueError("input text is empty; there is nothing to run")
        return pad(rows, self.pad_id, padding_side or "right")

    def _encode(self, texts: list[str], prepend_bos: bool) -> list[list[int]]:
        """Rows of tokens, each with <|startoftext|> in front when asked."""
        tokenizer = self.require_tokenizer()
        bos = tokenizer.id("<|startoftext|>") if prepend_bos else None
        if prepend_bos and bos is None:
            raise ValueError("prepend_bos: this vocabulary has no <|startoftext|>")
        front = [] if bos is None else [bos]
        return [front + tokenizer.encode(each) for each in texts]

    @property
    def pad_id(self) -> int:
        """Token that fills padding (never seen by attention)."""
        from_text = self.tokenizer.pad_id if self.tokenizer is not None else None
        chosen = from_text if from_text is not None else self.config.pad_token_id
        return chosen if chosen is not None and chosen < self.config.vocab_size else 0

    def to_tokens(
        self,
        input: Text,
        prepend_bos: bool = False,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Text to tokens; gpt-oss uses no BOS, `prepend_bos` puts <|startoftext|> in front."""
        tokens = self.encode_batch(input, padding_side, prepend_bos).tokens
        if truncate:
            tokens = tokens[:, : self.cfg.n_ctx]
        return tokens.to(self.cfg.device) if move_to_device else tokens

    def to_string(self, tokens: Tensor | list[int]) -> str | list[str]:
        """Tokens to text; a [batch, pos] tensor gives one string a row."""
        rows = torch.as_tensor(tokens)
        if rows.ndim == 2:
            return [self.require_tokenizer().decode(row.tolist()) for row in rows]
        return self.require_tokenizer().decode(rows.reshape(-1).tolist())

    def to_str_tokens(
        self, input: Text | Tensor | list[int], prepend_bos: bool = False
    ) -> list[str] | list[list[str]]:
        """One display string a token; nested for several rows."""
        tokenizer = self.require_tokenizer()
        if isinstance(input, str):
            return tokenizer.strings(self.to_tokens(input, prepend_bos)[0].tolist())
        if isinstance(input, list) and input and isinstance(input[0], str):
            texts = cast(list[str], input)
            return [tokenizer.strings(row) for row in self._encode(texts, prepend_bos)]
        rows = torch.as_tensor(input)
        if rows.ndim == 2 and rows.shape[0] > 1:
            return [tokenizer.strings(row.tolist()) for row in rows]
        return tokenizer.strings(rows.reshape(-1).tolist())

    def to_single_token(self, string: str) -> int:
        """The one token a string is; raises when it is several."""
        ids = self.require_tokenizer().encode(string)
        if len(ids) != 1:
            raise ValueError(f"{string!r} is {len(ids)} tokens, not one: {self.to_str_tokens(ids)}")
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        """The display string of one token."""
        return self.require_tokenizer().strings([int(token)])[0]

    def asked(self, input: Any, messages: Any, function: str) -> Any:
        """The input, or the rendered messages as tokens [1, pos]: one of the two is given."""
        if (input is None) == (messages is None):
            raise ValueError(f"{function}: give either input= or messages=")
        if messages is None:
            return input
        return torch.tensor([harmony.render_tokens(messages, self.require_tokenizer())])

    def read(
        self,
        input: Any,
        mask: Tensor | None = None,
        padding_side: str | None = None,
        prepend_bos: bool = False,
    ) -> Batch:
        """Check an input and turn it into tokens and mask on the model's device.

        Taken are text, texts, tokens [batch, pos], lists of ids (rows of different length are
        padded as texts are), and what holds tokens and mask: a Generation, a Trace, a Batch.
        """
        tokens, made = self._tokens(input, padding_side, prepend_bos)
        if mask is not None and made is not None:
            raise ValueError("attention_mask= goes with tokens; text makes its own mask")
        mask = made if mask is None else mask
        if tokens.numel() == 0:
            raise ValueError("input is empty; there is nothing to run")
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.ndim != 2 or tokens.dtype.is_floating_point or tokens.dtype == torch.bool:
            raise ValueError(
                f"input: expected integer tokens [batch, pos]; got {tuple(tokens.shape)} "
                f"of {tokens.dtype}"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"token {low if low < 0 else high} is out of range: the vocabulary has "
                f"{self.config.vocab_size} tokens (0 to {self.config.vocab_size - 1})"
            )
        tokens = tokens.long().to(self.cfg.device)
        return Batch(tokens, as_mask(mask, tokens.shape, tokens.device))

    def _tokens(
        self, input: Any, padding_side: str | None, prepend_bos: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens of any kind of input, and the mask where the input itself says it."""
        tokens, mask = getattr(input, "tokens", None), getattr(input, "mask", None)
        if isinstance(tokens, Tensor) and isinstance(mask, Tensor):
            if getattr(input, "context", None) is not None:
                raise ValueError("input: this trace was cut to some places; give its .whole")
            return self._padded_anew(Batch(tokens, mask), padding_side)
        if _is_text(input):
            return self.encode_batch(cast(Text, input), padding_side, prepend_bos)
        if isinstance(input, list | tuple) and input and all(map(_is_row, input)):
            rows = [[int(token) for token in row] for row in input]
            if len({len(row) for row in rows}) > 1:
                if [] in rows:
                    raise ValueError(f"input: row {rows.index([])} is empty; nothing to run there")
                return pad(rows, self.pad_id, padding_side or "right")
        try:
            return torch.as_tensor(input), None
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                "input: expected text, a list of texts, tokens [batch, pos], lists of token ids, "
                f"a Generation or a Trace; got {type(input).__name__}. "
                "A conversation is messages=[...]"
            ) from error

    def _padded_anew(self, batch: Batch, padding_side: str | None) -> Batch:
        """A batch padded on the side asked for; as it is where none is."""
        if padding_side is None or bool(batch.mask.all()):
            return batch
        rows = [row[real].tolist() for row, real in zip(*batch, strict=True)]
        return pad(rows, self.pad_id, padding_side)

    def input_size(
        self,
        input: Any = None,
        return_type: Any = None,
        loss_per_token: bool = False,
        prepend_bos: bool = False,
        padding_side: str | None = None,
        attention_mask: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_key_values: Any = None,
        *,
        messages: Any = None,
        **_: Any,
    ) -> InputSize:
        """Size and mask of a forward call, for the checks made before a cache is filled."""
        tokens, mask = self.asked(input, messages, "forward"), attention_mask
        if start_at_layer is None:
            tokens, made = self._tokens(tokens, padding_side, prepend_bos)
            mask = made if mask is None else mask
        shape = tokens.shape if tokens.ndim > 1 else torch.Size([1, *tokens.shape])
        if mask is not None:
            mask = as_mask(mask, shape[:2], self.cfg.device)
        past = 0 if past_key_values is None else len(past_key_values)
        return InputSize(shape[0], shape[1], past, self.cfg.device, mask)

    def check_length(self, longest: int) -> None:
        """Refuse more tokens than the model knows positions for."""
        limit = self.config.max_position_embeddings
        if longest > limit:
            raise ValueError(
                f"prompt too long: {longest} tokens, but {self.name} knows {limit} positions. "
                "Shorten it, or keep only its end."
            )


def _is_row(row: Any) -> bool:
    return isinstance(row, list | tuple) and all(isinstance(token, int) for token in row)


def _is_text(input: Any) -> bool:
    rows = input if isinstance(input, list) and input else [input]
    return all(isinstance(row, str) for row in rows)
