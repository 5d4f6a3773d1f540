"""Faults, one file a kind: what a disk, a peer, a signal, a thread or a damaged file may do to us.

The short form runs within ``make test``; ``make faults`` runs the long one. How to add faults:

- A fault has a name: one test or one parameter id per fault.
- What only the long form runs is marked ``@pytest.mark.faults_long``; what both run in another
  amount asks :func:`faults.conftest.amount` (``amount(20, 1000)``).
- ``processes.run`` runs a command with a bound and tells a hang, with the stacks, from an error;
  ``strace.kill_points`` / ``strace.run_killed`` kill a process at each of its writes to a folder;
  the fixture ``small_disk`` is a disk that can be filled; ``peers`` holds idle, slow, lying and
  vanishing TCP peers; ``mutate`` damages bytes and JSON fields, and ``mutate.survey`` holds a
  reader to "reads, or raises the documented error".
- Ports come from the operating system, files from ``tmp_path``: the suite runs under pytest-xdist.
- No verdict by the clock, except that a call returns within the wait that it states.
"""
