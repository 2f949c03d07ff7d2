"""Which tokens an edit means: positions, texts and harmony voices, as masks [batch, pos].

A token's voice is what the stream up to it says (`harmony.voices`), never what comes later, so an
edit acts on the same tokens whether a text is run whole, in chunks or while it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gptoss_hooks.edits import act, programs
from gptoss_hooks.edits.aligned import Run
from gptoss_hooks.edits.edit import Edit
from gptoss_hooks.edits.plan import plan as compiled
from gptoss_hooks.points import EditError
from gptoss_kernels.route_edited import RouteProgram
from gptoss_workbench.harmony.voices import VOICES, VoiceTracker
from gptoss_workbench.kv_cache import KVCache

UNEDITED: tuple[None, ...] = ()


def begin(
    model: Any,
    tokens: Tensor | None,
    positions: Tensor,
    cache: KVCache | None,
    stack: ExitStack,
) -> Sequence[RouteProgram | None]:
    """Make the model's active edits ready for one forward pass: programs a layer, hooks attached.

    `tokens` and `positions` are [batch, pos], positions -1 on padding; site edits stay on until
    `stack` is left. Without edits it is one look.
    """
    edits: tuple[Edit, ...] = model.active_edits
    if not edits:
        return UNEDITED
    scope = Scope(model, tokens, positions, cache)
    run = Run(positions, tokens, scope.continued, [scope.mask(edit) for edit in edits])
    plan = compiled(edits, model).on(positions.device)
    act.attach(model, plan.sites, run, stack)
    return programs.programs(plan.routes, run, plan.sizes)


class Scope:
    """The tokens of one forward call, by position, text and voice."""

    def __init__(self, model: Any, tokens: Tensor | None, positions: Tensor, cache: KVCache | None):
        self.model, self.tokens, self.positions, self.cache = model, tokens, positions, cache
        self.continued = cache is not None or model.text_grows
        self._voices: Tensor | None = None

    def mask(self, edit: Edit) -> Tensor:
        """[batch, pos] bool: where an edit acts; never on padding."""
        out = self.positions >= 0
        if edit.tokens is not None:
            out = out & self._at(edit)
        if edit.channels is not None:
            out = out & self._spoken(edit)
        idle = self.model.idle
        if idle.get(id(edit), "") is not None:
            acts = self.continued or bool(out.any())
            idle[id(edit)] = None if acts else self._why_idle(edit)
        return out

    def _why_idle(self, edit: Edit) -> str:
        """What an edit's scope asks for, and what is here instead."""
        if isinstance(edit.tokens, slice):
            return f"the longest row has {int(self.positions.max()) + 1} tokens"
        if edit.tokens is not None and isinstance(edit.tokens[0], str):
            return self._no_text(edit.tokens)
        if edit.channels is not None and self._voices is not None:
            there = sorted({VOICES[code] for code in self._voices.unique().tolist() if code >= 0})
            return f"the voices here are {', '.join(there)}"
        return "there are only pads"

    def _no_text(self, wanted: Sequence[str]) -> str:
        """A token that is not here, with one that is and differs by a space or a capital."""
        assert self.tokens is not None
        tokenizer = self.model.require_tokenizer()
        here = set(tokenizer.strings(self.tokens[self.positions >= 0].unique().tolist()))
        alike = {text.strip().lower() for text in wanted}
        near = sorted(text for text in here if text.strip().lower() in alike)
        said = f"no token here is {' or '.join(map(repr, wanted))}"
        return f"{said}; there is {', '.join(map(repr, near))}" if near else said

    def _at(self, edit: Edit) -> Tensor:
        wanted = edit.tokens
        if isinstance(wanted, slice):
            return self._in_slice(edit, wanted)
        if isinstance(wanted[0], str):
            return self._with_text(edit, wanted)
        lengths = self._lengths(edit, any(each < 0 for each in wanted))
        out = torch.zeros_like(self.positions, dtype=torch.bool)
        for each in wanted:
            at = each if each >= 0 else lengths + each
            out = out | (self.positions == at)
        longest = int(lengths.max()) if lengths is not None else None
        if longest is not None and not all(-longest <= each < longest for each in wanted):
            raise EditError(
                f"{edit}: tokens= are positions 0 to {longest - 1} of the longest row; "
                "the edit cannot act on others"
            )
        return out

    def _lengths(self, edit: Edit, needed: bool) -> Any:
        """[batch, 1] real tokens of each row; None while more may come."""
        if not self.continued:
            return self.positions.amax(1, keepdim=True) + 1
        if needed:
            raise EditError(
                f"{edit}: negative positions count from a row's end, which is not known with a KV "
                "cache or while text is being written; give positions from the start"
            )
        return None

    def _in_slice(self, edit: Edit, wanted: slice) -> Tensor:
        step = 1 if wanted.step is None else wanted.step
        if step < 1:
            raise EditError(f"{edit}: a slice of tokens needs a positive step")
        start, stop = wanted.start or 0, wanted.stop
        lengths = self._lengths(edit, start < 0 or (stop or 0) < 0)
        first = start if start >= 0 else (lengths + start).clamp_min(0)
        out = (self.positions >= first) & ((self.positions - first) % step == 0)
        if stop is None:
            return out
        return out & (self.positions < (stop if stop >= 0 else lengths + stop))

    def _with_text(self, edit: Edit, wanted: Sequence[str]) -> Tensor:
        if self.tokens is None:
            raise EditError(f"{edit}: texts need tokens, but a residual was given")
        tokenizer = self.model.require_tokenizer()
        for text in wanted:
            if len(tokenizer.encode(text)) != 1:
                raise EditError(
                    f"{edit}: {text!r} is {len(tokenizer.encode(text))} tokens, so no token is "
                    "that text; name each token"
                )
        ids = [tokenizer.encode(text)[0] for text in wanted]
        return torch.isin(self.tokens, torch.tensor(ids, device=self.tokens.device))

    def _spoken(self, edit: Edit) -> Tensor:
        if strange := [each for each in edit.channels or () if each not in VOICES]:
            raise EditError(f"{edit}: channels are {', '.join(VOICES)}; got {strange[0]!r}")
        if self._voices is None:
            self._voices = self._voiced(edit)
        codes = [VOICES.index(each) for each in edit.channels or ()]
        return torch.isin(self._voices, torch.tensor(codes, device=self.positions.device))

    def _voiced(self, edit: Edit) -> Tensor:
        """[batch, pos] code of each token's voice, -1 on padding."""
        if self.tokens is None:
            raise EditError(f"{edit}: channels need tokens, but a residual was given")
        real = self.positions >= 0
        trackers = self._trackers(len(self.tokens))
        out = torch.full(self.tokens.shape, -1)
        for row, tracker in enumerate(trackers):
            said = self.tokens[row][real[row]].tolist()
            out[row, real[row].cpu()] = torch.tensor(
                [VOICES.index(voice) for voice in tracker.read(said)], dtype=torch.long
            )
        return out.to(self.positions.device)

    def _trackers(self, rows: int) -> list[VoiceTracker]:
        """One a row, having read what the KV cache holds."""
        tokenizer = self.model.require_tokenizer()
        if self.cache is None:
            return [VoiceTracker(tokenizer) for _ in range(rows)]
        return self.cache.voices(tokenizer, rows)
