"""Work that is done again and again at the same addresses: on a GPU as a CUDA graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def capture(run: Callable[[], None], counters: Sequence[Tensor]) -> Callable[[], None]:
    """What does `run` once more, on a GPU without Python; on a CPU `run` itself.

    On a GPU it is run for the first time here, so that kernels are compiled and loaded, then
    recorded, which runs nothing; `counters`, the tensors that it adds to, are put back after that.
    """
    device = counters[0].device
    if device.type != "cuda":
        return run
    with torch.cuda.device(device):
        before = [counter.clone() for counter in counters]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)

    def again() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return again
