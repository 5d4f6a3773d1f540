"""Level-0 choices of earlier processes: taken where all that decides them is equal, else not."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.schedules import choices as level_0
from topi_kernels.schedules import search_space
from topi_kernels.schedules.choices import CHOICES, Choices, sources
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.schedules.cpu_int8 import workload as int8
from topi_kernels.schedules.cpu_int8.byte_layout import byte_layout
from topi_kernels.schedules.cpu_int8.workload import Int8Config, Int8Workload
from topi_kernels.schedules.opencl import space as opencl
from topi_kernels.schedules.opencl.config import GpuConfig
from tvm_pattern import choice_cache
from tvm_pattern.choice_cache import kept_choices
from tvm_pattern.code_cache import CodeCache


@dataclass(frozen=True)
class Facts:
    """What a choice depends on; no tile fits where there are no registers."""

    registers: int


class Process:
    """Choices and their chooser as a new process has them; ``calls`` are those of the chooser."""

    def __init__(self) -> None:
        self.choices, self.calls = Choices(), list[int]()

        def choose(facts: Facts) -> ConvConfig:
            self.calls.append(facts.registers)
            if not facts.registers:
                raise ValueError("no tile fits")
            return ConvConfig(8, 1, 1, 1, facts.registers, prefetch=2, even_rows=True)

        choose.__qualname__ = "choose"
        self.choose: Any = self.choices.remembered(ConvConfig)(choose)


@pytest.fixture
def cache(tmp_path) -> CodeCache:
    return CodeCache(tmp_path / "cache", 1 << 20)


def entry(cache: CodeCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_what_was_chosen_is_known_in_the_next_process(cache):
    first, second = Process(), Process()
    with kept_choices(cache, first.choices):
        made = [first.choose(Facts(3)), first.choose(Facts(4)), first.choose(Facts(3))]
    assert first.calls == [3, 4]
    assert entry(cache).stat().st_mode & 0o777 == 0o600
    with kept_choices(cache, second.choices):
        assert [second.choose(Facts(n)) for n in (3, 4, 3)] == made
        assert second.choose(Facts(5)).tile_cols == 5
    assert second.calls == [5]
    with kept_choices(cache, (third := Process()).choices):
        third.choose(Facts(5))
    assert third.calls == []


def test_so_is_that_there_is_none(cache):
    for process, calls in ((Process(), [0]), (Process(), [])):
        with kept_choices(cache, process.choices):
            for _ in range(2):
                with pytest.raises(ValueError, match="no tile fits"):
                    process.choose(Facts(0))
        assert process.calls == calls


def test_other_sources_choose_anew(cache, monkeypatch):
    with kept_choices(cache, (first := Process()).choices):
        first.choose(Facts(3))
    monkeypatch.setattr(choice_cache, "sources", lambda: "changed")
    with kept_choices(cache, (second := Process()).choices):
        second.choose(Facts(3))
    assert second.calls == [3]


def test_sources_change_with_every_file(tmp_path):
    assert sources(tmp_path / "none") is None
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        (folder / "deep").mkdir(parents=True)
        (folder / "cost.py").write_text("COST = 1\n")
        (folder / "deep" / "facts.py").write_text("")
    (folders[1] / "deep" / "facts.py").write_text("LANES = 8\n")
    (folders[2] / "deep" / "facts.py").rename(folders[2] / "deep" / "others.py")
    first, changed, renamed, equal = (sources(folder) for folder in folders)
    assert len({first, changed, renamed}) == 3
    assert equal == first
    assert sources() not in (None, first)


def test_without_sources_or_cache_nothing_is_kept(cache, monkeypatch):
    def unreadable() -> str:
        raise PermissionError("sources cannot be read")

    with kept_choices(None, (process := Process()).choices):
        process.choose(Facts(3))
    for unknown in (lambda: None, unreadable):
        monkeypatch.setattr(choice_cache, "sources", unknown)
        with kept_choices(cache, (process := Process()).choices):
            process.choose(Facts(3))
        assert process.calls == [3]
    assert not cache.folder.exists()


@pytest.mark.parametrize(
    "content",
    [b"no JSON", b"[]", b'{"digest": 5}', b'{"digest": {"tile_rows": [1]}}', None],
    ids=["text", "list", "number", "list-of-rows", "damaged"],
)
def test_what_is_no_choice_is_chosen_anew(cache, content):
    with kept_choices(cache, (first := Process()).choices):
        made = first.choose(Facts(3))
    key, whole = entry(cache).stem, entry(cache).read_bytes()
    if content is None:
        entry(cache).write_bytes(whole[:-3])
    else:
        cache.write({key: content})
    with kept_choices(cache, (second := Process()).choices):
        assert second.choose(Facts(3)) == made
    assert second.calls == [3]
    assert entry(cache).read_bytes() == whole


def test_knobs_of_another_kind_are_chosen_anew(cache):
    with kept_choices(cache, (first := Process()).choices):
        made = first.choose(Facts(3))
        (digest,) = first.choices.as_plain()
        first.choices.add({digest: {"unknown": 1}})
    for calls in ([3], []):
        with kept_choices(cache, (later := Process()).choices):
            assert later.choose(Facts(3)) == made
        assert later.calls == calls


def test_two_processes_keep_what_both_chose(cache):
    first, second = Process(), Process()
    with kept_choices(cache, first.choices):
        first.choose(Facts(3))
        with kept_choices(cache, second.choices):
            second.choose(Facts(4))
    with kept_choices(cache, (third := Process()).choices):
        third.choose(Facts(3))
        third.choose(Facts(4))
    assert third.calls == []


def test_the_oldest_go_first(cache, monkeypatch):
    monkeypatch.setattr(level_0, "MOST", 3)
    with kept_choices(cache, (first := Process()).choices):
        for registers in range(1, 6):
            first.choose(Facts(registers))
    assert len(first.choices.as_plain()) == 3
    with kept_choices(cache, (second := Process()).choices):
        for registers in (3, 4, 5, 1):
            second.choose(Facts(registers))
    assert second.calls == [1]


def test_nothing_new_writes_nothing(cache):
    for _ in range(2):
        with kept_choices(cache, (process := Process()).choices):
            process.choose(Facts(3))
        os.utime(entry(cache), (1000, 1000))
        inode = entry(cache).stat().st_ino
    assert entry(cache).stat().st_ino == inode


def test_every_field_of_the_facts_tells_choices_apart():
    task_facts = Backend.named("x86-avx2").facts
    digest = level_0._digest(search_space.default_config, (task_facts,))
    assert digest == level_0._digest(search_space.default_config, (replace(task_facts),))
    slower = replace(task_facts, line_cost=task_facts.line_cost + 1e-9)
    assert digest != level_0._digest(search_space.default_config, (slower,))
    assert digest != level_0._digest(opencl.default_config, (task_facts,))


GEOMETRY = ConvGeometry((3, 3), padding=(1, 1))


@pytest.mark.parametrize(
    ("family", "chooser", "config"),
    [
        ("x86-avx2", search_space.default_config, ConvConfig),
        ("mali", opencl.default_config, GpuConfig),
    ],
)
def test_processors_and_gpus_are_remembered(family, chooser, config):
    layout = PlaneLayout.make(6, 8, 1, 8)
    weight = np.ones((4, 3, 3, 3), np.float32)
    task = ConvTask.from_weight(weight, GEOMETRY, layout, layout, family=family)
    made = task.default_config()
    plain = CHOICES.as_plain()[level_0._digest(chooser.__wrapped__, (task.shape, task.machine))]
    assert config.from_dict(plain) == made == chooser.__wrapped__(task.shape, task.machine)


def test_convolutions_of_bytes_are_remembered():
    layout = byte_layout(6, 8, 1)
    units = {"group": 1, "groups": 4, "entries": 3, "unit_dtype": "uint16", "count_dtype": "uint16"}
    workload = Int8Workload(
        1, 4, 4, ConvGeometry((1, 1)), layout, layout, (), **units, isa="avx2", residual=False
    )
    made = int8.default_config(workload)
    plain = CHOICES.as_plain()[level_0._digest(int8.default_config.__wrapped__, (workload,))]
    assert Int8Config.from_dict(plain) == made == int8.default_config.__wrapped__(workload)
