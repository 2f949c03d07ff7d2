"""The operations in C++ for CPUs, with their promises kept bit for bit.

Weights are read packed, as they lie in the mapped checkpoint. Every result is summed in one order,
whatever the batch, the chunk, the padding, the number of threads, or who looks on.
"""
