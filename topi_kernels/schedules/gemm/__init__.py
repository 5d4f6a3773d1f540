"""Dense convolutions as products of matrices: lanes over output channels, inputs brought in order.

:mod:`.conv` is the PrimFunc, :mod:`.tiles` brings the inputs of Winograd's tiles in order and their
outputs back, :mod:`.pixels` those of kernels of one tap; :mod:`.space` chooses.
"""
