"""``relay.testing``: the networks of old tutorials, with weights that are random and repeatable.

>>> mod, params = relay.testing.resnet.get_workload(num_layers=50, batch_size=1)

``params`` is empty: the weights are constants of ``mod``. The input is named ``data``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm

from .. import models
from .frontend import from_pytorch

IMAGE = (3, 224, 224)


class _Network:
    """One network of :mod:`tvm_pattern.models`, called as ``relay.testing`` calls it.

    Parameters
    ----------
    name : str
    builders : dict
        Depth -> builder; the first is the default.
    """

    def __init__(self, name: str, builders: dict[int, Callable[..., Any]]) -> None:
        self._name, self._builders = name, builders

    def get_workload(
        self,
        batch_size: int = 1,
        num_classes: int = 1000,
        image_shape: Sequence[int] = IMAGE,
        dtype: str = "float32",
        num_layers: int | None = None,
    ) -> tuple[tvm.IRModule, dict[str, Any]]:
        """The network as a module, and its parameters, of which there are none.

        Parameters
        ----------
        batch_size, num_classes : int
        image_shape : sequence of int
            Channels, height and width.
        dtype : str
            ``float32``.
        num_layers : int, optional

        Raises
        ------
        ValueError
            On another depth or dtype.
        """
        depth = next(iter(self._builders)) if num_layers is None else num_layers
        if depth not in self._builders or dtype != "float32":
            raise ValueError(
                f"got {self._name} of {depth} layers in {dtype}, expected float32 and one of"
                f" {list(self._builders)} layers; import another network by"
                " relay.frontend.from_pytorch"
            )
        network = self._builders[depth](num_classes=num_classes).eval()
        return from_pytorch(network, [("data", (batch_size, *image_shape))])


resnet = _Network("resnet", {50: models.resnet50})
mobilenet = _Network("mobilenet", {2: models.mobilenet_v2})
vgg = _Network("vgg", {16: models.vgg16})
