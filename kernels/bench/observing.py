"""What observing costs: tokens per second with hooks off, with routing, with everything.

    python kernels/bench/observing.py [--layers 6 --hidden 256 ...]

One process, one thread, a random model of the given shape; variants interleaved, medians
reported. Transformers' own class (experts dequantised, eager attention) runs in the same rounds.
The table is printed and stored under results/, one CSV per machine.
"""

import statistics
import time
from collections.abc import Callable

import machine
import torch
import typer

from gptoss_workbench.checkpoint import save_checkpoint
from gptoss_workbench.checkpoint.synthetic import random_tensors
from gptoss_workbench.config import GPT_OSS_20B, Config, alternating_layers
from gptoss_workbench.model import GptOss

ROUTING = ("hook_router_logits", "hook_expert_indices", "hook_expert_weights")


def main(
    layers: int = 4,
    hidden: int = 256,
    experts: int = 32,
    tokens: int = 192,
    repeats: int = 7,
    threads: int = 1,
) -> None:
    """Measure, print and store."""
    torch.set_num_threads(threads)
    config = small(layers, hidden, experts)
    tensors = random_tensors(config, seed=0)
    model = GptOss(config, tensors, dtype=torch.float32)
    prompt = torch.randint(0, config.vocab_size, (1, tokens))
    variants = {
        "hooks off": lambda: model(prompt),
        "residual + routing": lambda: model.run_with_cache(prompt, names_filter=is_common),
        "everything": lambda: model.run_with_cache(prompt),
        "transformers": rival(config, tensors, prompt),
    }
    with torch.no_grad():
        seconds = interleaved(variants, repeats)
    rows = table(seconds, tokens)
    for row in rows:
        print("{:<20} {:>10} tokens/s   {:>6} x hooks off".format(*row))
    store(rows, config, tokens, threads, repeats)


def small(layers: int, hidden: int, experts: int) -> Config:
    """gpt-oss-20b's proportions at another size."""
    from dataclasses import replace

    return replace(
        GPT_OSS_20B,
        num_hidden_layers=layers,
        layer_types=alternating_layers(layers),
        hidden_size=hidden,
        intermediate_size=hidden,
        num_local_experts=experts,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=2048,
        eos_token_id=(2,),
        pad_token_id=1,
    )


def is_common(name: str) -> bool:
    """The residual stream and the route: what most studies keep."""
    return name.endswith(("hook_resid_post", *ROUTING))


def rival(config: Config, tensors: dict, prompt: torch.Tensor) -> Callable[[], object]:
    """Transformers' forward pass on the same weights."""
    from tempfile import TemporaryDirectory

    from transformers import GptOssForCausalLM, Mxfp4Config

    with TemporaryDirectory() as folder:
        save_checkpoint(tensors, folder, config=config)
        loaded = GptOssForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
        ).eval()
    return lambda: loaded(prompt)


def interleaved(variants: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Process seconds of every variant, in rounds, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(repeats + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if round_:
                seconds[name].append(time.process_time() - started)
    return seconds


def table(seconds: dict[str, list[float]], tokens: int) -> list[tuple[str, str, str]]:
    """Tokens per second (median) and the median of the per-round ratios to hooks off."""
    base = seconds["hooks off"]
    rows = []
    for name, spent in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(spent, base, strict=True))
        rows.append((name, f"{tokens / statistics.median(spent):.0f}", f"{ratio:.2f}"))
    return rows


def store(rows: list, config: Config, tokens: int, threads: int, repeats: int) -> None:
    shape = f"{config.num_hidden_layers}x{config.hidden_size}x{config.num_local_experts}"
    columns = ["variant", "tokens_per_second", "time_ratio", "shape", "tokens"]
    machine.store("observing", columns, ([*row, shape, tokens] for row in rows))
    print(f"{shape} (layers x hidden x experts), {tokens} tokens, {threads} thread(s),")
    print(f"{repeats} interleaved rounds, float32, torch {torch.__version__}, {machine.machine()}")


if __name__ == "__main__":
    typer.run(main)
