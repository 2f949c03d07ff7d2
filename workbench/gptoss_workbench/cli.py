"""The `gptoss` command: info, generate, trace, tune and doctor.

A mistake gives one line on stderr and exit code 2. Torch is imported by the commands that need it,
so `gptoss --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See inside gpt-oss: every activation, every expert choice, every step of reasoning.",
)

Prompt = Annotated[str, typer.Argument(help="What the user says.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Folder or hub id; without it gpt-oss-nano, which is embedded."),
]
Effort = Annotated[str, typer.Option(help="Reasoning effort: low, medium or high.")]
Tokens = Annotated[int, typer.Option(min=1, help="Most tokens to write.")]
Seed = Annotated[int | None, typer.Option(help="Seed of sampling.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Device = Annotated[str | None, typer.Option(help="cpu, or cuda for a GPU; without it cpu.")]
Dtype = Annotated[
    str | None, typer.Option(help="Of activations: bfloat16 (as released) or float32.")
]
Backend = Annotated[
    str | None, typer.Option(help="native, triton or reference; without it the fastest.")
]
EFFORTS = ("low", "medium", "high")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gptoss-workbench {version('gptoss-workbench')}")
        raise typer.Exit


@app.callback()
def shared(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Say the version."),
    ] = False,
) -> None:
    """See inside gpt-oss: every activation, every expert choice, every step of reasoning."""


@app.command()
def info(
    path: Annotated[
        str | None, typer.Argument(help="Folder or hub id; gpt-oss-nano if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Memory by context length instead.")
    ] = False,
    context: Annotated[int | None, typer.Option(help="With --memory: only this length.")] = None,
    device: Annotated[
        str | None, typer.Option(help="With --memory: what fits here, as 16GB or 80GB.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="With --memory: bfloat16 or float32.")
    ] = "bfloat16",
    gpu: Annotated[
        bool, typer.Option("--gpu", help="With --memory: on a GPU instead of mapped on a CPU.")
    ] = False,
) -> None:
    """Describe a checkpoint without loading it; exit code 1 where it could not be loaded."""
    with one_line_errors():
        from gptoss_workbench.checkpoint import checkpoint_info

        options = {"--context": context, "--device": device, "--gpu": gpu or None}
        options["--precision"] = None if precision == "bfloat16" else precision
        if alone := [name for name, value in options.items() if value is not None and not memory]:
            raise ValueError(f"{', '.join(alone)}: only with --memory")
        found = checkpoint_info(path)
        if memory:
            typer.echo(_memory_told(found.config, context, device, precision, gpu, as_json))
        else:
            told = found.to_dict()
            typer.echo(json.dumps(told, indent=2, default=str) if as_json else str(found))
        if not found.complete:
            raise typer.Exit(1)


@app.command()
def generate(
    prompt: Prompt,
    model: Model = None,
    effort: Effort = "medium",
    max_new_tokens: Tokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Answer a prompt; reasoning and answer are written as they come, by channel."""
    with one_line_errors():
        _check_effort(effort)
        if seed is not None and not temperature:
            raise ValueError("--seed: only with a --temperature above 0; without it is greedy")
        opened = _load(model, device, dtype, backend)
        pieces = opened.stream(
            messages=_ask(prompt),
            max_new_tokens=max_new_tokens,
            effort=effort,
            do_sample=temperature > 0,
            temperature=temperature,
            seed=seed,
        )
        for text in spoken(piece.text for piece in pieces):
            typer.echo(text, nl=False)
        typer.echo()
        if opened.last_generation.stopped == ["length"]:
            typer.echo(
                f"gptoss: cut off after {max_new_tokens} tokens; raise --max-new-tokens", err=True
            )


@app.command()
def trace(
    prompt: Prompt,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("trace.html"),
    model: Model = None,
    answer: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Let the model answer first.")
    ] = True,
    layer: Annotated[int | None, typer.Option(help="Layer of the attention view.")] = None,
    head: Annotated[int, typer.Option(help="Head the attention view opens with.")] = 0,
    effort: Effort = "medium",
    max_new_tokens: Tokens = 256,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Write a page that shows channels, expert routing and attention of a prompt and its answer."""
    with one_line_errors():
        _check_effort(effort)
        import torch

        from gptoss_workbench.views.page import trace_page

        opened = _load(model, device, dtype, backend)
        depth = opened.config.num_hidden_layers
        layer = min(2, depth - 1) if layer is None else layer
        if not 0 <= layer < depth:
            raise ValueError(f"--layer: the model has layers 0 to {depth - 1}; got {layer}")
        said = {"prompt": prompt}
        if answer:
            written = opened.generate(
                messages=_ask(prompt), max_new_tokens=max_new_tokens, effort=effort
            )
            tokens, said["answer"] = written.tokens, written.final or "(none yet)"
        else:
            tokens = torch.tensor([opened.render(_ask(prompt), effort=effort)])
        names = [f"blocks.{layer}.attn.hook_{point}" for point in ("pattern", "sink")]
        seen = opened.trace(tokens, names_filter=names, router_logits=True)
        page = trace_page(seen, out, title=prompt, told=said, layer=layer, head=head)
        typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


@app.command()
def tune() -> None:
    """Time the Triton kernels' tiles on this GPU and keep those that are faster."""
    with one_line_errors():
        import torch

        if not torch.cuda.is_available():
            raise ValueError("tune: no GPU is found; tiles are tuned on the GPU that will use them")
        from gptoss_kernels.triton import tiles
        from gptoss_kernels.triton import tune as kernels

        choices = []
        for choice in kernels.tune(kernels.Shapes(), torch.device("cuda")):
            choices.append(choice)
            before, after = choice.milliseconds
            kept = "kept" if choice.after == choice.before else f"now {choice.after}"
            typer.echo(
                f"{choice.job:<28} {choice.kernel:<24} {before:.3f} -> {after:.3f} ms  {kept}"
            )
        kernels.save(choices)
        typer.echo(f"{tiles.device_name()}: kept in {tiles.own_file()}")


@app.command()
def doctor() -> None:
    """Tell what this machine offers, and whether the embedded model runs."""
    from gptoss_workbench.doctor import examine

    report = examine()
    width = max(len(name) for name, _, _ in report)
    for name, ok, told in report:
        typer.echo(f"{'ok ' if ok else '-- '} {name:<{width}}  {told}")
    if not all(ok for name, ok, _ in report if name in ("torch", "gpt-oss-nano")):
        raise typer.Exit(1)


def spoken(pieces: Iterable[str]) -> Iterator[str]:
    """Turn streamed text with harmony's markers into what one reads: `[channel]`, then its text."""
    header: str | None = None
    for piece in pieces:
        if piece in ("<|start|>", "<|channel|>"):
            header = "" if header is None or piece == "<|start|>" else f"{header} "
        elif piece == "<|message|>":
            yield f"[{(header or 'assistant').strip().removeprefix('assistant').strip()}]\n"
            header = None
        elif piece.startswith("<|") and piece.endswith("|>"):
            yield "\n" if header is None and piece in ("<|end|>",) else ""
        elif header is not None:
            header += piece
        else:
            yield piece


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show what a user can mend as one line, and exit with 2."""
    try:
        yield
    except (ValueError, IndexError, OSError, ImportError, MemoryError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"gptoss: {line}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _memory_told(
    config: Any, context: int | None, device: str | None, precision: str, gpu: bool, as_json: bool
) -> str:
    from gptoss_hooks.memory import in_bytes
    from gptoss_workbench.checkpoint import memory_plan

    sizes = {"bfloat16": 2, "float32": 4}
    if precision not in sizes:
        raise ValueError(f"--precision: expected bfloat16 or float32; got {precision}")
    plan = memory_plan(
        config,
        contexts=None if context is None else [context],
        dtype_bytes=sizes[precision],
        room=None if device is None else in_bytes(device),
        gpu=gpu,
    )
    if not as_json:
        return repr(plan)
    columns = {name: column.tolist() for name, column in plan.columns.items()}
    return json.dumps({"columns": columns, "notes": list(plan.notes)}, indent=2)


def _load(source: str | None, device: str | None, dtype: str | None, backend: str | None) -> Any:
    from gptoss_workbench import load

    return load(source, device=device, dtype=dtype, backend=backend)


def _ask(prompt: str) -> list[dict[str, str]]:
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return [{"role": "user", "content": prompt}]


def _check_effort(effort: str) -> None:
    if effort not in EFFORTS:
        raise ValueError(f"--effort: expected {', '.join(EFFORTS)}; got {effort}")


if __name__ == "__main__":
    sys.exit(app())
