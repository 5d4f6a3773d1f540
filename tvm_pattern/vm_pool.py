"""Relax virtual machines of one library, each used by one call at a time.

A virtual machine keeps the frames of its running call, so two threads must not share one. Its
weights are the library's own and not copied; another machine costs less than a millisecond.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

Machine = TypeVar("Machine")


class VMPool(Generic[Machine]):
    """Machines to borrow and give back.

    Parameters
    ----------
    make : callable
        Makes a machine; called by one thread at a time.
    """

    def __init__(self, make: Callable[[], Machine]) -> None:
        self._make = make
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._idle: SimpleQueue[Machine] = SimpleQueue()
        self._lock = threading.RLock()
        self._users: set[int] = set()
        self._paused: list[Machine] = []
        self._is_pausing = self._was_busy = False
        self._size = 0
        self._first: Machine | None = None

    @property
    def first(self) -> Machine:
        """The machine that serves while one thread calls; see :meth:`borrow`."""
        self._refuse_locks_of_the_parent()
        with self._lock:
            if self._first is not None:
                return self._first
            machine = self._grow()
            self._idle.put(machine)
            return machine

    def _grow(self) -> Machine:
        with self._lock:
            machine = self._make()
            self._size += 1
            if self._first is None:
                self._first = machine
            return machine

    def borrow(self, limit: int) -> Machine:
        """A machine for this thread alone; waits while ``limit`` of them are in use.

        Raises
        ------
        RuntimeError
            In a child that was forked in the middle of a call.
        """
        me = threading.get_ident()
        if self._is_pausing and me not in self._users:
            with self._lock:
                pass  # the fork goes first: calls in turns would leave it no machine
        self._refuse_locks_of_the_parent()
        try:
            machine = self._idle.get_nowait()
        except Empty:
            machine = self._borrow_slowly(me, limit)
        self._users.add(me)
        return machine

    def _borrow_slowly(self, me: int, limit: int) -> Machine:
        # A call inside a call (from an instrument) would wait for itself.
        if me in self._users or self._size < limit:
            with self._lock:
                if me in self._users or self._size < limit:
                    return self._grow()
        return self._idle.get()

    def give_back(self, machine: Machine) -> None:
        """Let other threads use a machine that was borrowed."""
        self._users.discard(threading.get_ident())
        self._idle.put(machine)

    def pause(self, deadline: float) -> bool:
        """Borrow all machines, or by ``deadline`` (of :func:`time.monotonic`) none."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        self._is_pausing = True
        while len(self._paused) < self._size:
            try:
                self._paused.append(self._idle.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                self.resume()
                return False
        return True

    def resume(self) -> None:
        """End a pause."""
        self._is_pausing = False
        self._give_back_all(self._paused)
        self._paused = []
        self._lock.release()

    def resume_in_child(self) -> None:
        """In a forked child: go on with the machines of a pause, if there was one."""
        machines, first = self._paused, self._first
        was_busy = self._was_busy or not self._is_pausing
        # Freeing what a thread of the parent was using might wait for that thread's locks.
        _left_behind.append((self._idle, first))
        self._reset()
        self._was_busy = was_busy
        if machines:
            self._size, self._first = len(machines), first
            self._give_back_all(machines)

    def _refuse_locks_of_the_parent(self) -> None:
        if self._was_busy:
            raise RuntimeError(
                "this process was forked while its parent ran the library, and that call went on"
                f" for {_FORK_WAIT:g} s: what it locks would never be unlocked here. Fork between"
                " calls, or start the process by spawn and load the library there"
            )

    def _give_back_all(self, machines: list[Machine]) -> None:
        for machine in machines:
            self._idle.put(machine)


# Seconds that a fork waits for running calls to end, so that the child finds no lock of TVM held;
# a child of a longer call refuses to run the library.
_FORK_WAIT = 5.0
_pools: weakref.WeakSet[VMPool] = weakref.WeakSet()
_paused_pools: list[VMPool] = []
_left_behind: list[Any] = []
_fork_lock = threading.Lock()


def _before_fork() -> None:
    _fork_lock.acquire()
    deadline = time.monotonic() + _FORK_WAIT
    _paused_pools[:] = [pool for pool in list(_pools) if pool.pause(deadline)]


def _after_fork_in_parent() -> None:
    for pool in _paused_pools:
        pool.resume()
    _paused_pools.clear()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()
    for pool in list(_pools):
        pool.resume_in_child()
    _paused_pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
