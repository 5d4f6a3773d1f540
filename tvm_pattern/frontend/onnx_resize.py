"""ONNX ``Resize`` by the rules of its specification, one matrix per axis.

TVM rounds scales to whole output pixels and shares one rule for coordinates between modes; the
specification keeps the scales that are given. Here the node becomes matrix products and gathers,
which every importer understands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)


@dataclass(frozen=True)
class ResizeRule:
    """The attributes of a ``Resize`` node that decide about its weights."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_coefficient: float = -0.75
    exclude_outside: bool = False

    def why_not(self) -> str | None:
        """Why the rule is not taken, or None."""
        if self.coordinates not in _COORDINATES:
            return (
                f"coordinate_transformation_mode={self.coordinates!r}; expected one of"
                f" {', '.join(_COORDINATES)}"
            )
        if self.mode not in ("nearest", "linear", "cubic"):
            return f"mode={self.mode!r}; expected nearest, linear or cubic"
        return None


def axis_matrix(rule: ResizeRule, size: int, output: int, scale: float) -> np.ndarray:
    """Weights along one axis: float32 [output pixels, input pixels].

    Parameters
    ----------
    rule : ResizeRule
    size, output : int
        Pixels of the input and of the output.
    scale : float
        Output per input pixel as the node gives it; not always ``output / size``.
    """
    places = np.array([_place(rule.coordinates, i, size, output, scale) for i in range(output)])
    matrix = np.zeros((output, size))
    if rule.mode == "nearest":
        pixels = np.clip(_rounded(rule.rounding, places), 0, size - 1)
        matrix[np.arange(output), pixels] = 1
        return matrix.astype("float32")
    first = np.floor(places).astype(int)
    offsets = (0, 1) if rule.mode == "linear" else (-1, 0, 1, 2)
    weights = np.stack([_weight(rule, places - (first + o)) for o in offsets], 1)
    pixels = np.stack([first + o for o in offsets], 1)
    if rule.exclude_outside:
        weights = np.where((pixels < 0) | (pixels >= size), 0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    rows = np.broadcast_to(np.arange(output)[:, None], pixels.shape)
    np.add.at(matrix, (rows, np.clip(pixels, 0, size - 1)), weights)
    return matrix.astype("float32")


def _place(coordinates: str, pixel: int, size: int, output: int, scale: float) -> float:
    """Where an output pixel lies in the input.

    In float32 as every runtime computes it: `nearest` takes another pixel where a tie is missed.
    """
    half, ratio = np.float32(0.5), np.float32(scale)
    at = np.float32(pixel)
    if coordinates == "align_corners":
        return 0.0 if output == 1 else float(at * np.float32(size - 1) / np.float32(output - 1))
    if coordinates == "asymmetric":
        return float(at / ratio)
    if coordinates == "pytorch_half_pixel" and output == 1:
        return 0.0
    place = (at + half) / ratio - half
    if coordinates == "half_pixel_symmetric":
        adjustment = np.float32(output) / (ratio * np.float32(size))
        place += np.float32(size) / np.float32(2) * (np.float32(1) - adjustment)
    return float(place)


def _rounded(rounding: str, places: np.ndarray) -> np.ndarray:
    if rounding == "floor":
        rounded = np.floor(places)
    elif rounding == "ceil":
        rounded = np.ceil(places)
    elif rounding == "round_prefer_ceil":
        rounded = np.floor(places + 0.5)
    else:
        rounded = np.ceil(places - 0.5)
    return rounded.astype(int)


def _weight(rule: ResizeRule, distance: np.ndarray) -> np.ndarray:
    d = np.abs(distance)
    if rule.mode == "linear":
        return np.maximum(1 - d, 0)
    a = rule.cubic_coefficient
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
