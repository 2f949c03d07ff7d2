"""The operations as Triton kernels for GPUs, observable and differentiable.

One plain source for the CPU interpreter, NVIDIA sm_80 to sm_120 and AMD gfx942. Every kernel goes
through `launch`; sums run in one fixed order, no float atomics; hooks are tensors, not code.
"""
