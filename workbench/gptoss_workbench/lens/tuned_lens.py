"""The tuned lens: an affine map a layer that speaks the last layer's language.

    tuned(x) = softmax(W_U norm_final(x + A x + b))      A = 0, b = 0 at the start: the logit lens

Belrose et al., 2303.08112; trained by `train_tuned_lens`. The last layer has no map.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "gptoss-workbench tuned lens"


class TunedLens(nn.Module):
    """An affine map for each of some layers.

    logit_lens(model, prompt, lens=TunedLens.load("runs/lens.safetensors", model))
    """

    def __init__(
        self,
        layers: Sequence[int],
        d_model: int,
        *,
        n_layers: int,
        fingerprint: str | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        """Start as the logit lens.

        Args:
            layers: blocks whose resid_post is mapped, the last one not among them.
            n_layers: blocks of the model.
            fingerprint: of the model it is for.
            about: what made it, kept in the saved file.
        """
        super().__init__()
        if any(not 0 <= layer < n_layers - 1 for layer in layers) or not layers:
            raise ValueError(
                f"TunedLens: expected layers between 0 and {n_layers - 2} (the last layer needs "
                f"no map), got {list(layers)}"
            )
        self.layers, self.n_layers = tuple(layers), n_layers
        self.fingerprint, self.about = fingerprint, dict(about or {})
        self.weight = nn.Parameter(torch.zeros(len(layers), d_model, d_model))
        self.bias = nn.Parameter(torch.zeros(len(layers), d_model))

    def forward(self, layer: int, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Map a layer's residuals, in their dtype and where they are; the last layer's stay."""
        if layer == self.n_layers - 1:
            return x
        if layer not in self.layers:
            raise ValueError(
                f"TunedLens: trained for layers {list(self.layers)}, not {layer}; pass layers= of "
                "those, or train it for more"
            )
        at = self.layers.index(layer)
        wide, weight, bias = x.float(), self.weight[at].to(x.device), self.bias[at].to(x.device)
        return (wide + wide @ weight.mT + bias).to(x.dtype)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        tensors = {"weight": self.weight.detach(), "bias": self.bias.detach()}
        document = {
            "layers": self.layers,
            "n_layers": self.n_layers,
            "fingerprint": self.fingerprint,
            "about": self.about,
        }
        return write_whole(path, tensors, document, FORMAT)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> TunedLens:
        """Read a saved lens; with a model, refuse one that was made for another."""
        tensors, saved = read_whole(path, FORMAT)
        if model is not None and saved["fingerprint"] != model.fingerprint:
            raise ValueError(
                f"TunedLens.load: {path} was trained on the model {saved['fingerprint']}, this is "
                f"{model.fingerprint}; train one for it, or load without model= to take it anyway"
            )
        lens = cls(
            saved["layers"],
            tensors["bias"].shape[1],
            n_layers=saved["n_layers"],
            fingerprint=saved["fingerprint"],
            about=saved["about"],
        )
        lens.load_state_dict(tensors)
        device = "cpu" if model is None else model.cfg.device
        return lens.requires_grad_(False).to(device)

    def __repr__(self) -> str:
        steps = self.about.get("steps")
        trained = f", {steps} steps" if steps else ""
        return f"TunedLens(layers {list(self.layers)} of {self.n_layers}{trained})"


def write_whole(
    path: str | Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any], kind: str
) -> Path:
    """Write tensors and a json document as one safetensors file that appears all at once."""
    file = _with_ending(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.{os.getpid()}.part")
    metadata = {"format": kind, "document": json.dumps(document, ensure_ascii=False)}
    try:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, half, metadata)
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)
    return file


def read_whole(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_whole` wrote."""
    file = _with_ending(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != kind:
        raise ValueError(f"{file}: expected a {kind}, got {metadata.get('format')!r}")
    return tensors, json.loads(metadata["document"])


def _with_ending(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
