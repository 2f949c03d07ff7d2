"""What this CPU gives: reading mapped weights, and torch's matrix products beside our experts."""

import ctypes
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_kernels.native import build
from gptoss_workbench.expert_layer import ExpertLayer

SOURCE = Path(__file__).with_name("read.cpp")


def read_rate(parts: Sequence[Tensor], threads: int) -> float:
    """Bytes a second while `threads` cores read all of the parts once, each its share."""
    read, shares = reader(), []
    for part in parts:
        words = part.numel() * part.itemsize // 8 // threads
        start = part.data_ptr()
        shares.append([(start + 8 * words * i, words) for i in range(threads)])
    columns = list(zip(*shares, strict=True))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(len, columns))  # threads begin here
        started = time.perf_counter()
        list(pool.map(lambda column: [read(*share) for share in column], columns))
        seconds = time.perf_counter() - started
    return 8 * sum(words for column in columns for _, words in column) / seconds


@cache
def reader() -> Callable[[int, int], int]:
    """read.cpp, compiled for this CPU; it raises where no compiler is found."""
    with TemporaryDirectory() as folder:
        library = Path(folder) / "read.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        command = [*build.compiler(), *flags, str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
        read = ctypes.CDLL(str(library)).read_words
    read.argtypes, read.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint64
    return read


class Products:
    """One expert layer at so many tokens, and torch's products with one of its matrices."""

    def __init__(self, layer: ExpertLayer, tokens: int):
        draw = torch.Generator().manual_seed(0)
        outer, inner = layer.gate_up_proj_bias.shape[1], layer.down_proj_bias.shape[1]
        self.layer, self.tokens = layer, tokens
        self.x = torch.randn(1, tokens, inner, generator=draw)
        scores = torch.randn(1, tokens, layer.n_experts, generator=draw)
        self.indices = scores.topk(layer.k).indices  # all experts are hit about equally
        self.weights = torch.full(self.indices.shape, 1 / layer.k)
        self.wide = torch.randn(outer, inner, generator=draw) / inner**0.5
        self.narrow = self.wide.bfloat16()

    def rates(self) -> dict[str, float]:
        """Operations a second of each, once."""
        x, low, rows = self.x[0], self.x[0].bfloat16(), self.tokens
        few = -(-rows * self.layer.k // self.layer.n_experts)
        jobs = {
            "expert layer": (1.5 * self.layer.k * rows, self.experts),
            f"bf16 GEMM, {rows} rows": (rows, lambda: F.linear(low, self.narrow)),
            f"bf16 GEMM, {few} rows": (few, lambda: F.linear(low[:few], self.narrow)),
            f"fp32 GEMM, {rows} rows": (rows, lambda: F.linear(x, self.wide)),
        }  # an expert is one and a half of these matrices
        each = 2.0 * self.wide.numel()
        return {name: each * times / seconds(job) for name, (times, job) in jobs.items()}

    def experts(self) -> Tensor:
        layer = self.layer
        return layer.ops.moe(
            self.x.bfloat16(), self.indices, self.weights, layer.experts, limit=layer.limit
        )


def seconds(job: Callable[[], object]) -> float:
    with torch.no_grad():
        started = time.perf_counter()
        job()
        return time.perf_counter() - started
