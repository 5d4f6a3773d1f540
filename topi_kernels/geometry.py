"""How a window of taps moves over an image: the one description of a convolution's geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ConvGeometry:
    """Geometry of a convolution or a pooling window; every pair is ``(vertical, horizontal)``.

    Parameters
    ----------
    kernel_size, stride, dilation : tuple of (int, int)
    padding : tuple of (int, int)
        ``(top, left)``; bottom and right follow from the sizes of input and output.

    Raises
    ------
    ValueError
        If a figure is out of range.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(*self.kernel_size, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(
                "a geometry needs positive kernel_size, stride and dilation and padding >= 0,"
                f" got {self}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[int]]) -> ConvGeometry:
        """Inverse of :func:`dataclasses.asdict`, JSON's lists included.

        Raises
        ------
        ValueError
            If a field is no pair of whole numbers, or out of range.
        """
        for name, values in data.items():
            if len(values) != 2 or any(type(value) is not int for value in values):
                raise ValueError(f"{name} is a pair of whole numbers, got {str(values)[:40]}")
        return cls(**{name: (first, second) for name, (first, second) in data.items()})

    @property
    def reach(self) -> tuple[int, int]:
        """Distance of the first and the last tap, vertically and horizontally."""
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        return (kh - 1) * dh, (kw - 1) * dw
