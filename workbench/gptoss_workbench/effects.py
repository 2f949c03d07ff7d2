"""What an intervention does, beside what matched random interventions do.

    effect = mean over a group's tokens of (loss under the edits - loss without), nats per token

Controls are the same verbs with other targets: as many other experts of the same layer, each drawn
from the half of the unnamed ones whose load (share of slots in the unedited run) is nearest to
that of the expert it stands for; as many other heads or neurons of the layer; a Gaussian vector of
equal norm. z and p compare the effect with its controls: z in standard deviations of theirs (NaN
where they hardly differ), p = (1 + controls at least as far from the middle) / (1 + controls), the
rank test of a randomisation, its middle the mean of the controls and the edit. So p is at least
1 / (1 + controls): 19 controls can show 0.05.
SteerMoE (arXiv 2509.09660) and SAFEx (arXiv 2506.17368) compare with random experts likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.edits import Edit, SiteEdit
from gptoss_hooks.edits.routing import Replay
from gptoss_workbench.effect_controls import control_of, loads
from gptoss_workbench.harmony.voices import VOICES, VoiceTracker
from gptoss_workbench.intervals import bootstrap
from gptoss_workbench.patching import metrics as patching
from gptoss_workbench.table import Table
from gptoss_workbench.text import Batch, pad
from gptoss_workbench.tokenizer import Tokenizer

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [batch pos vocab], tokens [batch pos], mask [batch pos]) -> one number a row [batch]"""
ALIKE = 1e-4
"""Controls whose spread is a smaller part of their distance to the effect do not differ."""
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 2048, 1 << 27
"""Places and logits of one batch, padding included."""


class _Score(NamedTuple):
    """Sums and counts of one run, [prompt, group]."""

    total: np.ndarray
    n: np.ndarray


def effect_table(
    model: Any,
    edits: Edit | Sequence[Edit],
    texts: Sequence[str] | Sequence[Sequence[int]] | Tensor,
    *,
    metric: str | Metric = "loss",
    groups: str | Sequence[str] | None = None,
    voices: str | Sequence[str] | None = None,
    controls: int = 19,
    seed: int = 0,
) -> Table:
    """Effect of an intervention by group of texts or tokens, with matched random controls.

    effect_table(model, zero([0, 1, 2, 3], layers=2), texts, groups=languages)

    Args:
        texts: strings, or rows of tokens.
        metric: "loss" (nats per next token), one of `patching` (log_prob(" 7"), say), or a function
            of logits, tokens and mask that gives one number a row.
        groups: a label a text, "channel" (the voice of the token that is predicted; loss only), or
            None for one group.
        voices: count only tokens that these voices say, ("analysis", "final") say (loss only); a
            prompt's words were not learned, and their loss drowns the answer's.
        controls: random interventions; 0 for none.

    `low` and `high` bound a 95 % bootstrap interval of the effect over texts, `control_low` and
    `control_high` hold 95 % of the controls. Raises EditError where an edit has no matched control.
    """
    listed = [edits] if isinstance(edits, Edit) else list(edits)
    rows = _rows(model, texts)
    metric = patching.as_metric(metric, model) if isinstance(metric, patching.Metric) else metric
    names, codes = _groups(model, rows, groups, metric)
    if voices is not None:
        codes = _spoken(model, rows, codes, voices, metric)
    if silent := [n for g, n in enumerate(names) if not any((c == g).any() for c in codes)]:
        raise ValueError(f"effect_table: nothing to count in {', '.join(silent)}")
    run = _Runner(model, rows, codes, len(names), metric)
    base, edited = run.score(()), run.score(listed)
    rng = np.random.default_rng(seed)
    load = loads(model, run.batches(()), listed) if controls else {}
    others = [run.score(control_of(listed, model, load, rng)) for _ in range(controls)]
    drawn = np.array([_effect(other, base) for other in others]).reshape(controls, len(names))
    return _table(model, listed, names, base, edited, drawn, metric, seed)


class _Runner:
    """Runs the texts under edits, in batches of like length."""

    def __init__(
        self, model: Any, rows: list[list[int]], codes: list[np.ndarray], n: int, metric: Any
    ):
        self.model, self.rows, self.codes, self.n, self.metric = model, rows, codes, n, metric

    def batches(self, edits: Sequence[Edit]) -> list[tuple[list[int], Batch]]:
        """(which rows, their batch); values recorded a row keep all rows together, in order."""
        if any(_fixes_rows(edit) for edit in edits) or getattr(self.metric, "rows", None):
            groups = [list(range(len(self.rows)))]
        else:
            most = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // self.model.cfg.d_vocab)
            groups = _alike([len(row) for row in self.rows], most)
        home = self.model.cfg.device
        out = []
        for at in groups:
            tokens, mask = pad([self.rows[i] for i in at], self.model.pad_id, "right")
            out.append((at, Batch(tokens.to(home), mask.to(home))))
        return out

    @torch.no_grad()
    def score(self, edits: Sequence[Edit]) -> _Score:
        """Sum and count of the metric, by prompt and group."""
        total = np.zeros((len(self.rows), self.n))
        count = np.zeros_like(total)
        with self.model.edited(*edits):
            for at, (tokens, mask) in self.batches(edits):
                values = self._values(tokens, mask)
                for row, prompt in enumerate(at):
                    code = self.codes[prompt]
                    kept = values[row][: len(code)]
                    for g in range(self.n):
                        total[prompt, g] += kept[code == g].sum()
                        count[prompt, g] += (code == g).sum()
        return _Score(total, count)

    def _values(self, tokens: Tensor, mask: Tensor) -> np.ndarray:
        if self.metric == "loss":
            loss = self.model(tokens, "loss", loss_per_token=True, attention_mask=mask)
            return loss.double().cpu().numpy()
        logits = self.model(tokens, attention_mask=mask)
        return self.metric(logits, tokens, mask).double().cpu().numpy().reshape(len(tokens), 1)


def _fixes_rows(edit: Edit) -> bool:
    """Whether an edit holds a value for every row, so that rows may not be sorted."""
    if isinstance(edit, Replay):
        return True
    return isinstance(edit, SiteEdit) and any(t.ndim > 2 for t in edit.tensors().values())


def _alike(lengths: list[int], most: int) -> list[list[int]]:
    """Rows sorted by length, cut into batches that padding does not swell."""
    out: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if out and (len(out[-1]) + 1) * lengths[row] <= most:
            out[-1].append(row)
        else:
            out.append([row])
    return out


def _rows(model: Any, texts: Any) -> list[list[int]]:
    if isinstance(texts, Tensor):
        texts = texts.tolist()
    if isinstance(texts, str) or not len(texts):
        raise ValueError("effect_table: texts= is a list of strings or of rows of tokens")
    if isinstance(texts[0], str):
        tokenizer: Tokenizer = model.require_tokenizer()
        return [tokenizer.encode(text) for text in texts]
    return [[int(token) for token in row] for row in texts]


def _groups(
    model: Any, rows: list[list[int]], groups: Any, metric: Any
) -> tuple[list[str], list[np.ndarray]]:
    """Names of the groups, and the group of each value the metric gives a row."""
    lengths = [len(row) - 1 if metric == "loss" else 1 for row in rows]
    if groups == "channel":
        if metric != "loss":
            raise ValueError('effect_table: groups="channel" splits tokens, so metric is "loss"')
        read = [VoiceTracker(model.require_tokenizer()).read(row)[1:] for row in rows]
        names = [voice for voice in VOICES if any(voice in row for row in read)]
        return names, [np.array([names.index(voice) for voice in row]) for row in read]
    if metric != "loss" and not callable(metric):
        raise ValueError(f'effect_table: metric is "loss" or a function; got {metric!r}')
    labels = ["all"] * len(rows) if groups is None else list(cast(Sequence[str], groups))
    if len(labels) != len(rows):
        raise ValueError(f"effect_table: {len(rows)} texts, but {len(labels)} groups")
    names = list(dict.fromkeys(labels))
    both = zip(labels, lengths, strict=True)
    return names, [np.full(length, names.index(label)) for label, length in both]


def _spoken(
    model: Any, rows: list[list[int]], codes: list[np.ndarray], voices: Any, metric: Any
) -> list[np.ndarray]:
    """The groups, -1 for tokens that none of the voices says."""
    wanted = [voices] if isinstance(voices, str) else list(voices)
    if metric != "loss" or not wanted or set(wanted) - set(VOICES):
        raise ValueError(
            f'effect_table: voices= goes with metric="loss" and are of {", ".join(VOICES)}; '
            f"got {wanted} with {metric!r}"
        )
    read = [VoiceTracker(model.require_tokenizer()).read(row)[1:] for row in rows]
    said = [np.isin(row, wanted) for row in read]
    return [np.where(keep, code, -1) for keep, code in zip(said, codes, strict=True)]


def _effect(edited: _Score, base: _Score) -> np.ndarray:
    return (edited.total - base.total).sum(0) / base.n.sum(0)


def _table(
    model: Any,
    edits: list[Edit],
    names: list[str],
    base: _Score,
    edited: _Score,
    drawn: np.ndarray,
    metric: Any,
    seed: int,
) -> Table:
    effect, count = _effect(edited, base), base.n.sum(0)
    moved = np.stack([edited.total - base.total, base.n], -1)  # [prompt, group, 2]
    low, high = bootstrap(lambda s: s[..., 0] / np.maximum(s[..., 1], 1e-9), moved, seed=seed)
    columns = {
        "group": np.array(names), "n": count.astype(int),
        "base": base.total.sum(0) / count, "edited": edited.total.sum(0) / count,
        "effect": effect, "low": low, "high": high,
    }  # fmt: skip
    if len(drawn):
        columns |= _against(effect, drawn)
    unit = "nats/token" if metric == "loss" else ""
    measured = [name for name in columns if name not in ("group", "n", "z", "p")]
    return Table(
        columns,
        f"Effect of {', '.join(map(repr, edits))}",
        "edited minus base; controls: " + (__doc__ or "").split("Controls are ")[1].split(" z ")[0],
        units=dict.fromkeys(measured, unit) if unit else {},
        notes=_notes(len(drawn)),
        provenance={
            "model": getattr(model, "name", None),
            "fingerprint": getattr(model, "fingerprint", None),
            "edits": [repr(edit) for edit in edits],
            "controls": len(drawn),
            "seed": seed,
        },
    )


def _notes(controls: int) -> tuple[str, ...]:
    bounds = "low, high: 95 % bootstrap over texts, NaN for a single one"
    if not controls:
        return (bounds,)
    return f"{controls} matched random controls; p is at least {1 / (1 + controls):.2g}", bounds


def _against(effect: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """How the effect stands among its controls."""
    mean = drawn.mean(0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    spread = drawn.std(0, ddof=1) if len(drawn) > 1 else np.full_like(mean, np.nan)
    varied = spread > ALIKE * np.abs(effect - mean)
    z = np.divide(effect - mean, spread, out=np.full_like(mean, np.nan), where=varied)
    middle = (drawn.sum(0) + effect) / (1 + len(drawn))
    as_far = (np.abs(drawn - middle) >= np.abs(effect - middle) - 1e-12).sum(0)
    return {
        "control": mean, "control_low": low, "control_high": high,
        "z": z, "p": (1 + as_far) / (1 + len(drawn)),
    }  # fmt: skip
