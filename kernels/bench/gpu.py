"""The Triton backend on a real GPU: right first, then timed, in one table.

    python kernels/bench/gpu.py                        # 20b's shapes, drawn weights
    python kernels/bench/gpu.py --checkpoint FOLDER    # real weights
    python kernels/bench/gpu.py --dry-run              # on a CPU, tiny, in Triton's interpreter

1. Agreement: each operation and the whole model with the plain reference on the same device, odd
   sizes; observing and company compared bit for bit; a captured step with an ordinary one. Nothing
   is timed unless all of it holds.
2. Speed, variants and rivals in turn within a round: tokens/s of prompts and of decoding with hooks
   off, residual + routing, everything; share of the measured memory bandwidth; peak memory.
   transformers (with its own MXFP4 kernels) and vLLM run where they are installed.

The table is printed and stored under results/, one CSV a GPU.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="A folder with weights.")] = None,
    layers: Annotated[int, typer.Option(help="Of drawn weights.")] = 24,
    prompts: Annotated[str, typer.Option(help="Lengths, with commas.")] = "128,2048",
    contexts: Annotated[str, typer.Option(help="Lengths to decode after.")] = "128,8192",
    repeats: int = 5,
    rivals: Annotated[bool, typer.Option(help="Time transformers and vLLM too.")] = True,
    dry_run: Annotated[bool, typer.Option(help="Everything once, tiny, on a CPU.")] = False,
) -> None:
    """Compare, time, print and store."""
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    import gpu_agreement
    import gpu_speed
    import torch

    device = torch.device("cpu" if dry_run else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no GPU is found; --dry-run goes through all of it on a CPU")
    wrong = 0
    for found in gpu_agreement.compare(device):
        print(found)
        wrong += not found.holds
    if wrong:
        print(f"{wrong} comparisons do not hold: nothing is timed")
        raise typer.Exit(1)
    plan = gpu_speed.Plan(
        checkpoint,
        replace_layers(layers),
        [int(n) for n in prompts.split(",")],
        [int(n) for n in contexts.split(",")],
        repeats,
        rivals,
    )
    if dry_run:
        plan = gpu_speed.tiny()
    rows = gpu_speed.measure(plan, device)
    print(f"{gpu_speed.about(device)}, torch {torch.__version__}, medians of {plan.repeats} rounds")
    if not dry_run:
        print(f"stored in {gpu_speed.store(rows, device)}")


def replace_layers(layers: int):
    """gpt-oss-20b cut to so many layers."""
    from gptoss_workbench.config import GPT_OSS_20B, alternating_layers

    return replace(GPT_OSS_20B, num_hidden_layers=layers, layer_types=alternating_layers(layers))


if __name__ == "__main__":
    typer.run(main)
