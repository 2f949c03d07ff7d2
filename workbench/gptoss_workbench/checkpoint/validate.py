"""Whether the tensors of a checkpoint are what its config says, before they are used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from gptoss_workbench.checkpoint import hf_layout, original_layout
from gptoss_workbench.checkpoint.errors import CheckpointError, one_message
from gptoss_workbench.checkpoint.inventory import Inventory
from gptoss_workbench.checkpoint.safetensors_file import Spec
from gptoss_workbench.config import QUANTIZATION, Config

NAN_SCALE = 255
"""The E8M0 byte that means NaN; every other byte is a power of two."""

SCAN_CHUNK = 1 << 26
"""Scale bytes looked at together, so that a scan holds no more than this in memory."""

DENSE = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")


def check(inventory: Inventory) -> None:
    """Raise one CheckpointError with everything that is wrong, from headers alone."""
    found = problems(inventory)
    if found:
        raise CheckpointError(one_message(f"cannot use {inventory.folder}:", found))


def problems(inventory: Inventory) -> list[str]:
    """Everything that is wrong, one sentence each, the cause before its consequences."""
    if inventory.problems:  # with a shard missing, its tensors would only repeat the news
        return [*inventory.problems, *check_quantization(inventory)]
    if is_dense(inventory):
        return check_quantization(inventory)
    return check_quantization(inventory) + check_specs(inventory.entries, expected(inventory))


def expected(inventory: Inventory) -> dict[str, Spec]:
    """The tensors the folder should have, under stored names."""
    layout = original_layout if inventory.layout == "original" else hf_layout
    return layout.expected(inventory.config)


def check_quantization(inventory: Inventory) -> list[str]:
    """quantization_config must say mxfp4, and the experts must be packed."""
    if is_dense(inventory):
        return [
            "the experts are not packed: this is a repack whose MXFP4 weights were dequantised "
            "(mlp.experts.gate_up_proj without _blocks and _scales), at about four times the size; "
            "use the MXFP4 original, e.g. openai/gpt-oss-20b, or pack each weight with "
            "gptoss_kernels.mxfp4.pack (after transposing to [expert, out, in]) and save_checkpoint"
        ]
    if inventory.layout == "original":
        return []
    stated = inventory.raw_config.get("quantization_config")
    if not stated:
        return [
            "config.json has no quantization_config although the experts are packed (other loaders "
            "would start from random experts); add "
            f'"quantization_config": {json.dumps(QUANTIZATION)}'
        ]
    if stated.get("quant_method") != "mxfp4":
        return [f"quant_method is {stated.get('quant_method')!r}: expected 'mxfp4'"]
    return []


def is_dense(inventory: Inventory) -> bool:
    """Whether any expert weight is there unpacked."""
    return any(DENSE.search(name) for name in inventory.entries)


def check_specs(found: Mapping[str, Spec], wanted: Mapping[str, Spec]) -> list[str]:
    """One sentence for each tensor that is missing, unknown, or has another shape or dtype."""
    wrong = [f"tensor {name} is missing" for name in wanted if name not in found]
    wrong += [f"tensor {name} is not part of gpt-oss" for name in found if name not in wanted]
    for name, spec in wanted.items():
        got = found.get(name)
        if got is not None and got.shape != spec.shape:
            wrong.append(
                f"tensor {name}: expected shape {list(spec.shape)} from config.json, "
                f"got {list(got.shape)}"
            )
        elif got is not None and got.dtype != spec.dtype:
            wrong.append(f"tensor {name}: expected dtype {spec.dtype}, got {got.dtype}")
    return wrong


def check_scales(tensors: Mapping[str, Tensor], config: Config) -> None:
    """Raise where an expert's scale byte is 255, which would make a block of weights NaN.

    Reads every scale once (0.6 GB for the 20b) in chunks and keeps none of it.
    """
    wrong = []
    for name in hf_layout.expected(config):
        if hf_layout.part(name) == "scales":
            wrong += [_name_place(name, tensors[name], at) for at in _nan_places(tensors[name])]
    if wrong:
        raise CheckpointError(one_message("expert scales hold NaN:", wrong))


def _nan_places(scales: Tensor) -> Iterator[int]:
    """The first scale byte 255 of a tensor, if any, as a flat index."""
    # numpy, on one thread, is 7 x faster than torch on two busy cores
    flat = scales.cpu().reshape(-1).numpy()
    for start in range(0, flat.size, SCAN_CHUNK):
        chunk = flat[start : start + SCAN_CHUNK]
        if int(chunk.max()) == NAN_SCALE:
            yield start + int(chunk.argmax())
            return


def _name_place(name: str, scales: Tensor, at: int) -> str:
    _, rows, groups = scales.shape
    expert, row, group = at // (rows * groups), at // groups % rows, at % groups
    return (
        f"tensor {name}: scale byte 255 (NaN in MXFP4) at expert {expert}, row {row}, "
        f"group {group}; the file is damaged or was packed from NaN weights"
    )
