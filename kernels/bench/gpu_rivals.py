"""transformers and vLLM on the same GPU, where they are installed.

Both need a folder with weights. transformers keeps MXFP4 packed with the kernels it fetches from
its hub, else it dequantises; which of the two ran is in its name.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def found(checkpoint: Path | None, device: torch.device) -> dict[str, Any]:
    """Rivals by name; who is missing, and why, is printed."""
    out: dict[str, Any] = {}
    for name, kind in (("transformers", Transformers), ("vllm", VLLM)):
        if checkpoint is None:
            print(f"{name}: not timed, it needs --checkpoint")
        elif find_spec(name) is None:
            print(f"{name}: not timed, it is not installed")
        else:
            rival = kind(checkpoint, device)
            out[rival.name] = rival
    return out


class Transformers:
    """GptOssForCausalLM with its own cache."""

    def __init__(self, checkpoint: Path, device: torch.device):
        from transformers import GptOssForCausalLM

        self.model = GptOssForCausalLM.from_pretrained(
            checkpoint, dtype=torch.bfloat16, device_map=device
        ).eval()
        packed = any(p.dtype == torch.uint8 for p in self.model.parameters())
        self.name = "transformers, packed" if packed else "transformers, dequantised"

    def prefill(self, tokens: Tensor) -> None:
        self.model(tokens, use_cache=True, logits_to_keep=1)

    def fill(self, tokens: Tensor) -> None:
        with torch.no_grad():
            filled = self.model(tokens, use_cache=True, logits_to_keep=1)
        self.cache = filled.past_key_values

    def decode(self, steps: Tensor) -> None:
        for step in steps.split(1, 1):
            self.model(step, past_key_values=self.cache, use_cache=True)


class VLLM:
    """vLLM's offline engine, one sequence; its prefix cache makes `decode` a decode."""

    name = "vLLM"

    def __init__(self, checkpoint: Path, device: torch.device):
        from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

        self.sampling = SamplingParams
        self.engine = LLM(str(checkpoint), enable_prefix_caching=True, max_model_len=16384)

    def prefill(self, tokens: Tensor) -> None:
        fresh = torch.randint_like(tokens, 1000, 100_000)  # no prefix of it is cached
        self._write(fresh, 1)

    def fill(self, tokens: Tensor) -> None:
        self.prompt = tokens
        self._write(tokens, 1)

    def decode(self, steps: Tensor) -> None:
        self._write(self.prompt, steps.shape[1])

    def _write(self, tokens: Tensor, count: int) -> None:
        prompts = [{"prompt_token_ids": row} for row in tokens.tolist()]
        how = self.sampling(temperature=0.0, max_tokens=count, ignore_eos=True)
        self.engine.generate(prompts, how, use_tqdm=False)
