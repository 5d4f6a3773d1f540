"""OpenCL on this computer: a runtime for TVM's wheel, which has none, and what devices there are.

The runtime is C++ that comes as source (``native/``), is compiled at the first use with ``g++`` and
kept in the cache folder. Libraries for ``pattern/mali`` and ``pattern/adreno`` whose host is this
computer then run here, alone or behind ``tvm-pattern rpc server --opencl``. Phones need none of it:
TVM's own runtime has OpenCL where it is built for them, see ``docs/phones.md``.
"""

from .errors import OpenCLError
from .facts import DeviceFacts, devices
from .half_emulation import emulated_float16
from .runtime import load_runtime

__all__ = ["DeviceFacts", "OpenCLError", "devices", "emulated_float16", "load_runtime"]
