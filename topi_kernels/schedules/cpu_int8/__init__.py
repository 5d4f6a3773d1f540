"""Convolutions of 8-bit activations and weights: four taps of a kernel are one dot product.

Activations are unsigned bytes with one scale and zero point, weights signed bytes with a scale per
filter. A word of four weights meets the four bytes that lie under its taps in one instruction;
:mod:`~topi_kernels.schedules.cpu_int8.lines` puts these bytes beside each other.
"""
