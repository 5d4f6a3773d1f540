"""Deploy: run, time and verify libraries on devices over RPC."""

from .device import Device, DeviceError, DeviceLostError, RemoteLibrary, WrongDeviceError
from .farm import DeviceResult, run_everywhere

__all__ = [
    "Device",
    "DeviceError",
    "DeviceLostError",
    "DeviceResult",
    "RemoteLibrary",
    "WrongDeviceError",
    "run_everywhere",
]
