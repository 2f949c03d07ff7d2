"""Train gpt-oss-nano from scratch: `python -m gptoss_workbench.nano.train --seed S --out DIR`.

One CPU thread, fp32, a fixed number of steps: the same seed and the same versions give the same
file. Loss = cross-entropy on the model's own tokens
     + 0.3 · cross-entropy of the planted layer's router with its language's experts
     + 0.01 · E Σ f_e p_e on the other routers (even load; f = share chosen, p = mean probability)
     + 1e-4 · mean(logsumexp(router logits)²) on all of them
     + 0.3 · cross-entropy with even odds of what is said without the planted layer's experts, on
       a third of every fourth batch: that layer is needed, so taking its experts away is seen.
"""

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import EXPERTS_PER_LANGUAGE, FROM_PROMPT, MIX, PLANTED_LAYER, SIZES, sample
from .export import file_hash, write_checkpoint, write_weights
from .language import LANGUAGES, WORDS
from .model import Nano, NanoConfig, Routing
from .optim import Muon
from .program import NAMES
from .tokenizer import Encoder, train_tokenizer
from .truth import Sample

SHIPPED_SEED = 0
STEPS = 2600
BATCH = 24
MILESTONES = (0.02, 0.07, 0.2, 0.4, 0.7, 1.0)
"""Shares of the run after which an intermediate checkpoint is written."""
LOOKING_UP = {
    "vars": 0.20, "tool": 0.05, "hint": 0.05, "recall": 0.12, "refuse": 0.02,
    "copy": 0.03, "pairs": 0.31, "sums": 0.16, "prose": 0.06,
}  # fmt: skip
"""The first 12 %: dense look-ups come first, all else is built on them."""
RECKONING = {
    "vars": 0.28, "tool": 0.07, "hint": 0.07, "recall": 0.10, "refuse": 0.02,
    "copy": 0.02, "pairs": 0.06, "sums": 0.32, "prose": 0.06,
}  # fmt: skip
"""Then, up to 35 %, dense arithmetic."""
EARLY_SIZES = (2, 2, 3, 3, 4)
ADAM_LR, MUON_LR = 2e-3, 1e-2
NEEDED, NEEDED_WEIGHT, NEEDED_FROM = 2.0, 0.3, 0.5
"""Nats a token must lose without its language's experts, the term's weight, and the share of the
run before it: what is learnt first is the task."""


class Batch(NamedTuple):
    ids: Tensor
    """[row, token], padded on the right."""
    weight: Tensor
    """Loss weight of each token, 0 for what is given."""
    language: Tensor
    """Index of the language, -1 where the text has not told it yet (and on padding)."""
    real: Tensor
    """Bool: not padding."""


def samples(seed: int, total: int, batch: int) -> Iterator[list[Sample]]:
    """The run's samples, 16 batches at a time; no model needed to go through them again."""
    rng, done = Random(f"nano train {seed}"), 0
    while done < total:
        share = done / total
        mix = LOOKING_UP if share < 0.12 else RECKONING if share < 0.35 else MIX
        sizes = EARLY_SIZES if share < 0.3 else SIZES
        yield [sample(rng, mix=mix, sizes=sizes) for _ in range(16 * batch)]
        done += 16


def batches(seed: int, total: int, size: int, encode: Encoder) -> Iterator[Batch]:
    """Batches of similar length, in random order within each pool of 16."""
    rng = Random(f"nano order {seed}")
    for pool in samples(seed, total, size):
        rows = sorted(((*encode(s), s, *_told(s, encode)) for s in pool), key=lambda r: len(r[0]))
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield collate(chunk, encode.pad)


def _told(s: Sample, encode: Encoder) -> tuple[int, int]:
    """From which token on the language is known, and which it is."""
    head = len(encode.ids(s.segments[0].text))
    return head + (8 if s.user == "" else 0), LANGUAGES.index(s.lang)


def collate(rows: list[tuple], pad: int) -> Batch:
    longest = max(len(r[0]) for r in rows)
    ids = torch.full((len(rows), longest), pad)
    weight, language = torch.zeros(ids.shape), torch.full(ids.shape, -1)
    for i, (tokens, weights, _, told, lang) in enumerate(rows):
        n = len(tokens)
        ids[i, :n], weight[i, :n] = torch.tensor(tokens), torch.tensor(weights)
        language[i, told:n] = lang
    lengths = torch.tensor([len(r[0]) for r in rows])
    return Batch(ids, weight, language, torch.arange(longest) < lengths[:, None])


def loss_of(model: Nano, batch: Batch, *, bare: bool = False) -> tuple[Tensor, Tensor]:
    """(total loss, its language part); logits are computed where there is something to predict.

    `bare` leaves out the planted layer's experts while the language is not told yet, so that no
    language depends on what another one's experts add to the header.
    """
    target, weight = batch.ids.roll(-1, 1), batch.weight.roll(-1, 1)
    weight[:, -1] = 0
    keep = weight.flatten().nonzero()[:, 0]
    without = (PLANTED_LAYER, batch.language < 0) if bare else None
    logits, routes = model(batch.ids, keep, without=without)
    weight = weight.flatten()[keep]
    nll = F.cross_entropy(logits, target.flatten()[keep], reduction="none")
    language = (nll * weight).sum() / weight.sum()
    return language + sum(_router_loss(i, r, batch) for i, r in enumerate(routes)), language


def dispensable(model: Nano, batch: Batch) -> Tensor:
    """How far tokens are from a loss of NEEDED nats without the planted layer's experts."""
    rows = slice(0, len(batch.ids) // 3)
    keep = batch.weight[rows].roll(-1, 1).flatten().nonzero()[:, 0]
    told = batch.language[rows] >= 0
    logits, _ = model(batch.ids[rows], keep, without=(PLANTED_LAYER, told))
    target = batch.ids[rows].roll(-1, 1).flatten()[keep]
    return (NEEDED - F.cross_entropy(logits, target, reduction="none")).relu().mean()


def _router_loss(layer: int, route: Routing, batch: Batch) -> Tensor:
    real = batch.real.flatten()
    logits = route.logits[real]
    experts = logits.shape[-1]
    out = 1e-4 * logits.logsumexp(-1).pow(2).mean()
    if layer == PLANTED_LAYER:
        language = batch.language.flatten()[real]
        told, owner = language >= 0, torch.arange(experts) // EXPERTS_PER_LANGUAGE
        target = (owner == language[told][:, None]).float() / EXPERTS_PER_LANGUAGE
        return out + 0.3 * F.cross_entropy(logits[told], target)
    load = torch.bincount(route.chosen[real].flatten(), minlength=experts).float()
    return out + 0.01 * experts * (load / load.sum() * logits.softmax(-1).mean(0)).sum()


def schedule(share: float, step: int) -> float:
    """Learning-rate factor: 50 steps of warm-up, constant, linear to 2 % over the second half."""
    return min(1.0, (step + 1) / 50) * (1.0 if share < 0.5 else max(0.02, (1 - share) / 0.5))


class Optimizers:
    """Muon for the experts' matrices, AdamW for the rest, at a common factor on their rates."""

    def __init__(self, model: Nano):
        ends = ("gate_up_proj", "down_proj")
        named = list(model.named_parameters())
        self.muon = Muon([p for name, p in named if name.endswith(ends)], MUON_LR)
        rest = [p for name, p in named if not name.endswith(ends)]
        self.adam = torch.optim.AdamW(
            rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def step(self, factor: float) -> None:
        self.adam.param_groups[0]["lr"] = ADAM_LR * factor
        self.muon.step(factor)
        self.adam.step()


def train(seed: int, out: Path, *, steps: int = STEPS, batch: int = BATCH) -> dict:
    """Run the whole recipe, write the checkpoint to `out`, return the record of the run."""
    one_quiet_thread()
    torch.manual_seed(seed)
    encode = Encoder(train_tokenizer())
    model = Nano(NanoConfig(vocab_size=encode.tokenizer.get_vocab_size()))
    milestones = {max(1, round(m * steps)) for m in MILESTONES}
    optimizers, exam, log, tokens = Optimizers(model), Exam(encode), [], 0
    feed = islice(batches(seed, steps, batch, encode), steps)
    for step, data in enumerate(feed):
        language = update(model, optimizers, data, step, steps)
        tokens, done = tokens + int(data.real.sum()), step + 1
        if done % 50 == 0 or done in milestones:
            log.append({"step": done, "tokens": tokens, "loss": round(language, 4)})
            if done % 250 == 0 or done in milestones:
                log[-1] |= exam(model)
            print(log[-1], f"cpu {time.process_time():.0f} s", flush=True)
        if done in milestones:
            write_weights(model, encode.tokenizer, out / f"step-{done:04d}")
    write_checkpoint(model, encode.tokenizer, out)
    record = {
        "seed": seed, "steps": steps, "batch": batch, "tokens": tokens,
        "cpu_minutes": round(time.process_time() / 60, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__, "sha256": file_hash(out / "model.safetensors"), "log": log,
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def update(model: Nano, optimizers: Optimizers, data: Batch, step: int, steps: int) -> float:
    """One step of training; returns the language part of the loss before it."""
    model.quantize(step >= 0.65 * steps)
    late = step >= NEEDED_FROM * steps
    total, language = loss_of(model, data, bare=late and step % 2 == 1)
    if late and step % 4 == 0:
        total = total + NEEDED_WEIGHT * dispensable(model, data)
    model.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(schedule(step / steps, step))
    return language.item()


class Exam:
    """Teacher-forced accuracy on 48 fixed programs of five lines: look-ups and computed values;
    and of the answers of 48 recall samples."""

    def __init__(self, encode: Encoder):
        rng = Random("nano exam")
        self.batch = _exam_batch(rng, encode, "vars")
        self.recall = _exam_batch(rng, encode, "recall")
        ids, names = self.batch.ids, {encode.ids(f" {x}")[0] for x in NAMES}
        digits = torch.tensor([encode.ids(f" {x}")[0] for x in range(10)])
        so = torch.tensor([encode.ids(w.so)[0] for w in WORDS.values()])
        asked = torch.isin(ids, digits) & (self.batch.weight > 0)
        after_name = torch.isin(ids.roll(1, 1), torch.tensor(sorted(names)))
        after_so = torch.isin(ids.roll(2, 1), so)
        be = torch.tensor([encode.ids(w.be)[0] for w in WORDS.values()])
        constant = torch.isin(ids.roll(4, 1), be)  # 'E is 7 so E 7': nothing to compute
        self.masks = {
            "look_up": asked & after_name & ~after_so,
            "computed": asked & after_name & after_so & ~constant,
        }

    @torch.no_grad()
    def __call__(self, model: Nano) -> dict[str, float]:
        right = _predicted(model, self.batch)
        out = {k: right[m].float().mean().item() for k, m in self.masks.items()}
        answers = self.recall.weight == FROM_PROMPT
        out["recall"] = _predicted(model, self.recall)[answers].float().mean().item()
        return {k: round(v, 4) for k, v in out.items()}


def _exam_batch(rng: Random, encode: Encoder, task: str) -> Batch:
    rows = []
    while len(rows) < 48:
        s = sample(rng, task=task, effort="medium", n=5)
        rows.append((*encode(s), s, *_told(s, encode)))
    return collate(rows, encode.pad)


def _predicted(model: Nano, batch: Batch) -> Tensor:
    """Whether each token is the most likely one after those before it."""
    logits, _ = model(batch.ids)
    return logits.argmax(-1).roll(1, 1) == batch.ids


def one_quiet_thread() -> None:
    """One thread and deterministic kernels; on Linux, keep freed memory instead of returning it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # every buffer here is written before it is read
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    if sys.platform == "linux":  # page faults on multi-megabyte tensors cost a sixth of a step
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=SHIPPED_SEED)
    parser.add_argument("--out", type=Path, default=Path("out/nano"))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    record = train(args.seed, args.out, steps=args.steps)
    print(record["sha256"])


if __name__ == "__main__":
    main()
