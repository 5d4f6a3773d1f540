"""Accuracy of pruning on photographs: many independent networks trained as one batched model.

``python -m benchmarks.cifar`` needs torch, numpy and pillow, never TVM, and runs unchanged on a CPU
and on a CUDA GPU. :mod:`benchmarks.cifar.latency` measures the networks as compiled libraries.
"""
