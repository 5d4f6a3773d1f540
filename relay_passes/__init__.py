"""Relax passes that rewrite a network onto the pattern-sparse operator.

``import relay_passes`` registers the target tags ``pattern/...`` and the Relax pipeline
``pattern_sparse``, for ``tvm.compile(mod, target, relax_pipeline="pattern_sparse")``.
"""

from . import targets
from .pipeline import PIPELINE, lower

__all__ = ["PIPELINE", "lower", "targets"]
