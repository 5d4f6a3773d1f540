"""The engines we compare with. One file each; a new one is added to ``PEERS``."""

from .base import Peer
from .litert import LiteRt
from .mnn_module import Mnn
from .ncnn_net import Ncnn
from .onnx_runtime import OnnxRuntime
from .openvino_cpu import OpenVino
from .torch_cpu import Torch
from .tvm_default import TvmDefault

PEERS: tuple[Peer, ...] = (Torch(), OnnxRuntime(), OpenVino(), Ncnn(), Mnn(), LiteRt())

#: Hundreds of times slower on large networks: only where it is asked for.
UNTUNED = TvmDefault()

__all__ = ["PEERS", "UNTUNED", "Peer"]
