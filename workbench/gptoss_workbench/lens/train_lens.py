"""Training a tuned lens: every layer's map learns to predict what the last layer predicts.

    loss = mean over layers and sampled places of KL(final || tuned)     Belrose et al., 2303.08112

Prompts and places of a step are drawn from (seed, step) alone, so a run that was stopped continues
exactly as it would have gone on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_workbench.lens.kl_loss import kl_to_final
from gptoss_workbench.lens.places import choose_layers, read_prompts
from gptoss_workbench.lens.readout import final_norm
from gptoss_workbench.lens.residuals import residuals
from gptoss_workbench.lens.tuned_lens import TunedLens, read_whole, write_whole
from gptoss_workbench.text import Batch

FORMAT = "gptoss-workbench tuned lens training"
Progress = Callable[[int, float], None]
"""progress(step, loss in nats), after every step"""


def train_tuned_lens(
    model: Any,
    texts: Any,
    *,
    layers: int | Sequence[int] | None = None,
    steps: int = 250,
    lr: float = 1e-3,
    seed: int = 0,
    batch: int = 8,
    rows: int = 256,
    folder: str | Path | None = None,
    save_every: int = 50,
    progress: Progress | None = None,
) -> TunedLens:
    """Fit a map for each layer but the last; the model stays as it is.

    lens = train_tuned_lens(model, texts, folder="runs/lens")
    lens.save("runs/lens/final")

    Args:
        texts: text, texts, tokens [batch, pos] or lists of tokens.
        layers: blocks to train a map for; None is all but the last.
        steps, lr: of Adam, the rate falling linearly to zero.
        batch, rows: prompts of a step, and places drawn from them.
        folder: keeps training.safetensors there, every `save_every` steps; a run that finds one of
            the same settings goes on from it.
    """
    chosen = _trained_layers(model, layers)
    prompts = read_prompts(model, texts)
    lens = TunedLens(
        chosen, model.cfg.d_model, n_layers=model.n_layers, fingerprint=model.fingerprint,
        about={"steps": steps, "lr": lr, "seed": seed, "batch": batch, "rows": rows},
    ).to(model.cfg.device)  # fmt: skip
    adam = torch.optim.Adam(lens.parameters(), lr=lr)
    settings = lens.about | {"layers": chosen, "prompts": _digest(prompts)}
    file = None if folder is None else Path(folder) / "training.safetensors"
    done = 0 if file is None or not file.exists() else _resume(file, settings, lens, adam)
    for step in range(done, steps):
        for group in adam.param_groups:
            group["lr"] = lr * (1 - step / steps)
        states, final = draw(model, prompts, chosen, seed, step, batch, rows)
        loss = fit(model, lens, adam, states, final)
        if progress is not None:
            progress(step, loss)
        if file is not None and ((step + 1) % save_every == 0 or step + 1 == steps):
            _keep(file, settings, lens, adam, step + 1)
    return lens.requires_grad_(False)


def draw(
    model: Any, prompts: Batch, layers: Sequence[int], seed: int, step: int, batch: int, rows: int
) -> tuple[Float[Tensor, "layer row d_model"], Float[Tensor, "row d_model"]]:
    """Residuals of some places of some prompts, and the final ones, drawn by (seed, step)."""
    dice = torch.Generator().manual_seed(seed * 1_000_003 + step)
    tokens, mask = prompts
    picked = torch.randperm(len(tokens), generator=dice)[:batch].to(tokens.device)
    width = int(mask[picked].any(0).nonzero().max()) + 1
    part = Batch(tokens[picked, :width], mask[picked, :width])
    row, pos = part.mask.nonzero(as_tuple=True)
    some = torch.randperm(len(row), generator=dice)[:rows].to(row.device)
    names = [f"blocks.{layer}.hook_resid_post" for layer in [*layers, model.n_layers - 1]]
    kept = residuals(model, part, names, row[some], pos[some])
    *states, final = (kept[name] for name in names)
    return torch.stack(states), final


def fit(
    model: Any,
    lens: TunedLens,
    adam: torch.optim.Optimizer,
    states: Float[Tensor, "layer row d_model"],
    final: Float[Tensor, "row d_model"],
) -> float:
    """Take one step; give the loss before it, in nats."""
    ends = final_norm(model, final[None])[0]
    adam.zero_grad(set_to_none=True)
    with torch.enable_grad():
        mapped = [lens(layer, x.float()) for layer, x in zip(lens.layers, states, strict=True)]
        loss = kl_to_final(model, final_norm(model, torch.stack(mapped)), ends).mean()
    loss.backward()
    adam.step()
    return float(loss.detach())


def _trained_layers(model: Any, layers: int | Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(range(model.n_layers - 1))
    chosen = choose_layers(model.n_layers, layers)
    if model.n_layers - 1 in chosen:
        raise ValueError(
            f"train_tuned_lens: the last layer ({model.n_layers - 1}) needs no map; leave it out"
        )
    return chosen


def _digest(prompts: Batch) -> str:
    tokens, mask = (each.cpu() for each in prompts)
    return hashlib.sha256(tokens.numpy().tobytes() + mask.numpy().tobytes()).hexdigest()


def _keep(
    file: Path, settings: dict[str, Any], lens: TunedLens, adam: torch.optim.Adam, step: int
) -> None:
    tensors = {name: value.detach() for name, value in lens.named_parameters()}
    for name, parameter in lens.named_parameters():
        state = adam.state[parameter]
        tensors |= {f"{name}.{key}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    document = {"settings": settings, "step": step, "fingerprint": lens.fingerprint}
    write_whole(file, tensors, document, FORMAT)


def _resume(file: Path, settings: dict[str, Any], lens: TunedLens, adam: torch.optim.Adam) -> int:
    """Load a checkpoint into lens and optimiser; give the steps it has done."""
    tensors, saved = read_whole(file, FORMAT)
    if saved["settings"] != settings or saved["fingerprint"] != lens.fingerprint:
        raise ValueError(
            f"train_tuned_lens: {file} is of another run ({saved['settings']}); this one is "
            f"{settings}. Use the same settings to go on with it, or another folder="
        )
    with torch.no_grad():
        for name, parameter in lens.named_parameters():
            parameter.copy_(tensors[name])
            moments = ("exp_avg", "exp_avg_sq")
            adam.state[parameter] = {
                key: tensors[f"{name}.{key}"].to(parameter.device) for key in moments
            } | {"step": torch.tensor(float(saved["step"]))}
    return saved["step"]
