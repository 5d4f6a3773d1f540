"""Quantised networks: ``quantize`` / ``dequantize`` around operators -> operators on bytes."""

from .rewrite import QuantisedIslands

__all__ = ["QuantisedIslands"]
