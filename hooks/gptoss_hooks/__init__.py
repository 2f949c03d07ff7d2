"""Reading and writing activations: hook points, caches and the root that runs under them.

Knows tensors and names, not the model: anything with named hook points can use it.
"""
