"""What is timed: prompts, decoding and matrix products, all contestants in the same rounds."""

import random
import statistics
from collections.abc import Callable
from typing import NamedTuple

from child import Child
from rounds import Row, in_turn, ratios
from work import bytes_per_token, operations_per_token

from gptoss_workbench.config import Config

STEPS = 4
"""Tokens decoded in one turn."""
OBSERVED = ("hooks off", "residual + routing", "everything")
COMMON = OBSERVED[:2]


class Plan(NamedTuple):
    """How often and on how many threads."""

    repeats: int
    threads: int


class Limits(NamedTuple):
    """torch's fastest product, measured in the same run: what prompts are held against."""

    product: float
    """operations a second"""
    name: str


def drawn(tokens: int, config: Config) -> list[int]:
    """Random tokens, the same for everyone."""
    return random.Random(tokens).choices(range(config.vocab_size), k=tokens)


def products(ours: Child, tokens: int, plan: Plan) -> tuple[list[Row], Limits]:
    """The expert layer alone, as a share of each of torch's products within a round."""
    rounds = [
        ours.ask("products", threads=plan.threads, tokens=tokens) for _ in range(plan.repeats + 1)
    ][1:]
    found = {name: [each[name] for each in rounds] for name in rounds[0]}
    rates = {name: statistics.median(each) for name, each in found.items()}
    what = f"products, {tokens} tokens"
    rows = [Row(what, name, plan.threads, rates[name] / 1e9, "GFLOP/s") for name in rates]
    torchs = [name for name in rates if "GEMM" in name]
    layer = next(row for row in rows if row.who == "expert layer")
    for name in torchs:
        share = ratios(found["expert layer"], found[name])[0]
        rows.append(layer._replace(share=share, of=name))
    best = max(torchs, key=rates.__getitem__)
    return rows, Limits(rates[best], best)


def prefill(
    ours: Child, llama: Child | None, tokens: int, config: Config, plan: Plan, limits: Limits
) -> list[Row]:
    """Tokens a second of one prompt, logits of its last token."""
    how = {"tokens": drawn(tokens, config), "threads": plan.threads}
    jobs = {v: asked(ours, "prefill", variant=v, **how) for v in OBSERVED}
    if llama:
        jobs["llama.cpp"] = asked(llama, "prefill", **how)
    found = in_turn(jobs, plan.repeats)
    ceiling = limits.product / operations_per_token(config)
    rows = []
    for row in compared(f"prefill {tokens}", tokens, found, plan.threads):
        rate = tokens / statistics.median(found[row.who])
        rows.append(row._replace(share=rate / ceiling, of=limits.name))
    return rows


def decode(ours: Child, llama: Child | None, context: int, config: Config, plan: Plan) -> list[Row]:
    """Tokens a second, one at a time; the mapped experts are read in the same rounds."""
    how = {"tokens": drawn(context, config), "threads": plan.threads}
    room = context + STEPS * (plan.repeats + 1)
    ours.ask("fill", room=room, variants=OBSERVED, **how)
    steps = drawn(STEPS, config)
    jobs = {v: asked(ours, "decode", tokens=steps, variant=v) for v in OBSERVED}
    if llama:
        llama.ask("fill", **how)
        jobs["llama.cpp"] = asked(llama, "decode", tokens=steps)
    jobs["read"] = asked(ours, "read", threads=plan.threads)
    found = in_turn(jobs, plan.repeats)
    reads, size = found.pop("read"), bytes_per_token(config, context)
    what = f"decode at {context}"
    rows = []
    for row in compared(what, STEPS, found, plan.threads):
        used = [STEPS * size / seconds for seconds in found[row.who]]
        rows.append(row._replace(share=ratios(used, reads)[0], of="read"))
    speed = statistics.median(reads) / 1e9
    return [*rows, Row(what, "read, the mapped experts", plan.threads, speed, "GB/s")]


def body(ours: Child, hf: Child, variants: list[str], layers: int, config: Config, plan: Plan,
         *, prompts: list[int], contexts: list[int]) -> list[Row]:  # fmt: skip
    """Milliseconds a layer, the unembedding left out on both sides."""
    rows = []
    for tokens in prompts:
        how = {"tokens": drawn(tokens, config), "threads": plan.threads}
        jobs = {v: asked(ours, "prefill", variant=v, body=True, **how) for v in COMMON}
        jobs |= {v: asked(hf, "prefill", variant=v, **how) for v in variants}
        found = in_turn(jobs, plan.repeats)
        rows += per_layer(f"layer, prefill {tokens}", layers, 1, found, plan.threads)
    for context in contexts:
        how = {"tokens": drawn(context, config), "threads": plan.threads}
        room = context + STEPS * (plan.repeats + 1)
        ours.ask("fill", room=room, variants=COMMON, **how)
        hf.ask("fill", **how)
        steps = drawn(STEPS, config)
        jobs = {v: asked(ours, "decode", tokens=steps, variant=v, body=True) for v in COMMON}
        jobs |= {v: asked(hf, "decode", tokens=steps, variant=v) for v in variants}
        found = in_turn(jobs, plan.repeats)
        rows += per_layer(f"layer, decode at {context}", layers, STEPS, found, plan.threads)
    return rows


def compared(what: str, tokens: int, found: dict[str, list[float]], threads: int) -> list[Row]:
    """Tokens a second, and times over hooks off."""
    return [
        Row(what, who, threads, tokens / statistics.median(spent), "tokens/s",
            *ratios(spent, found["hooks off"]))
        for who, spent in found.items()
    ]  # fmt: skip


def per_layer(
    what: str, layers: int, passes: int, found: dict[str, list[float]], threads: int
) -> list[Row]:
    """Milliseconds a layer and pass, and times over hooks off."""
    return [
        Row(what, who, threads, 1e3 * statistics.median(spent) / layers / passes, "ms/layer",
            *ratios(spent, found["hooks off"]))
        for who, spent in found.items()
    ]  # fmt: skip


def asked(child: Child, do: str, **request) -> Callable[[], float]:
    """A turn: what the child measures, pipes and Python on this side left out."""
    return lambda: child.ask(do, **request)
