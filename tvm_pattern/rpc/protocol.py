"""Numbers of TVM's RPC protocol that a client of trackers needs; known without importing TVM.

``tests/rpc/test_client.py`` holds them against TVM's own.
"""

from __future__ import annotations

RPC_TRACKER_MAGIC = 0x2F271
SUCCESS = 0
STOP = 2
REQUEST = 4
SUMMARY = 6
