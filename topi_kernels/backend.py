"""The face of a device towards passes and tuner: made once from a Target and passed down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tvm.ir.transform import Pass
from tvm.target import Target

from .conv_task import ConvTask
from .device import Device, num_cores, why_no_float16
from .devices import DEVICES
from .layout import Padding, PlaneLayout
from .layout_choice import ConvNeed, LaneOrder, TensorSet, choose_lane_order, default_layout
from .layout_links import StridedLink, choose_lane_orders
from .operator import ConvPlan, plan_conv
from .plane_ops import PlaneTarget
from .schedules.choose import Config, Facts
from .schedules.family import Family
from .schedules.opencl.config import GpuFacts
from .structure import Structure


@dataclass(frozen=True)
class Backend:
    """One device as a Target describes it.

    Parameters
    ----------
    device : Device
    num_threads : int
        Threads to schedule for; 1 gives serial code.
    no_float16 : str
        Why it does not compute in float16; empty if it does.
    interleaved_lanes : bool
        Whether tensors may have interleaved lanes, see :mod:`topi_kernels.layout`.
    int8 : str
        Name of the instructions that multiply bytes; empty if the device has none.
    max_work_items : int
        Work_items that a GPU's work_groups may have; 0 for as many as the device's facts allow.
    winograd : bool
        Whether dense 3x3 layers may be computed by Winograd's filtering.
    """

    device: Device
    num_threads: int = 1
    no_float16: str = ""
    interleaved_lanes: bool = False
    int8: str = ""
    max_work_items: int = 0
    winograd: bool = True

    @classmethod
    def of(
        cls,
        target: Target,
        num_threads: int | None = None,
        *,
        interleaved_lanes: bool | None = None,
        winograd: bool = True,
    ) -> Backend:
        """The backend of a Target.

        Parameters
        ----------
        target : tvm.target.Target
        num_threads : int, optional
            Default: the target's ``num-cores``, else the cores that this process may use.
        interleaved_lanes : bool, optional
            Default: as the device's facts say.
        winograd : bool
            Whether dense 3x3 layers may be computed by Winograd's filtering.

        Raises
        ------
        ValueError
            If no device matches, or two do.
        """
        device = DEVICES.of(target)
        threads = num_cores(target) if num_threads is None else num_threads
        if interleaved_lanes is None:
            interleaved_lanes = isinstance(device.facts, Family) and device.facts.interleaved_lanes
        int8 = "" if device.int8 is None else device.int8(target)
        most = int(target.attrs.get("max_num_threads", 0)) if device.kind == "opencl" else 0
        no_float16 = why_no_float16(device, target)
        return cls(device, threads, no_float16, interleaved_lanes, int8, most, winograd)

    @classmethod
    def named(cls, name: str, num_threads: int = 1) -> Backend:
        """The backend of the device of that name, whatever the rest of a Target may say.

        Raises
        ------
        ValueError
            If there is no such device.
        """
        return cls(DEVICES.named(name), num_threads)

    @property
    def name(self) -> str:
        """Name of the device: what tasks, records and reports call it."""
        return self.device.name

    @property
    def facts(self) -> Facts:
        """What the schedules know of the device.

        Raises
        ------
        ValueError
            If it has no schedules.
        """
        return DEVICES.facts(self.name)

    @property
    def device_kind(self) -> str:
        """What TVM calls the device: ``tvm.device(device_kind, 0)``."""
        return self.device.kind

    def passes(self) -> list[Pass]:
        """Module passes that only this device wants, between ours and TVM's own."""
        return list(self.device.passes())

    def why_not(self, task: ConvTask | None = None) -> str:
        """Why the device runs none of the project's operators, or not this one; empty if it does.

        Parameters
        ----------
        task : ConvTask, optional
            A convolution; default: any operator at all.
        """
        if self.device.facts is None:
            return f"no schedules for the device {self.name!r}; compiled dense by TVM"
        if task is None or next(iter(self.space(task)), None) is not None:
            return ""
        return (
            f"the device {self.name!r} has no legal configuration for {task.label}; compiled dense"
            " by TVM"
        )

    def layout_for(
        self, height: int, width: int, pad: Padding, dtype: str = "float32"
    ) -> PlaneLayout:
        """Preferred plane layout of an activation, see :func:`default_layout`."""
        return default_layout(height, width, pad, self.name, dtype)

    def lane_order_for(
        self,
        needs: Sequence[ConvNeed],
        size: tuple[int, int],
        pad: int,
        changed_channels: int,
        dtype: str = "float32",
    ) -> LaneOrder | None:
        """Order of the pixels of connected tensors, see :func:`choose_lane_order`."""
        if not self.interleaved_lanes or isinstance(self.facts, GpuFacts):
            return None
        return choose_lane_order(
            needs, size, pad, changed_channels, self.name, dtype, winograd=self.winograd
        )

    def lane_orders_for(
        self, sets: Sequence[TensorSet], links: Sequence[StridedLink]
    ) -> list[LaneOrder | None]:
        """Orders of the pixels of sets of tensors, see :func:`choose_lane_orders`."""
        if not self.interleaved_lanes or isinstance(self.facts, GpuFacts):
            return [None] * len(sets)
        return choose_lane_orders(sets, links, self.name, winograd=self.winograd)

    def planes(self, dtype: str = "float32") -> PlaneTarget:
        """What the operators on planes need to know."""
        return PlaneTarget(self.name, self.num_threads, dtype, self.max_work_items)

    def plan(
        self,
        task: ConvTask,
        weight: np.ndarray,
        config: Config | None = None,
        structure: Structure | None = None,
    ) -> ConvPlan:
        """The planned convolution, see :func:`~topi_kernels.operator.plan_conv`."""
        if self.max_work_items and isinstance(self.facts, GpuFacts):
            config = (config or task.default_config()).within(self.max_work_items)
        return plan_conv(task, weight, config, self.num_threads, structure)

    def space(self, task: ConvTask) -> Iterator[Config]:
        """The configurations that the device's schedules offer for a task, in a fixed order."""
        return task.configs()
