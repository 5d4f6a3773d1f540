"""Python's garbage collector, paused while a network is compiled, and for the imports before it.

Both make millions of small objects that live on, and by them alone the collector is called to look
through everything that the process holds, torch and TVM included, again and again: more than a
tenth of the time. Reference counts free nearly all that goes meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic collection inside; afterwards as before. :func:`gc.collect` still works.

    Of several threads inside at once, the one that found the collector on puts it on again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
