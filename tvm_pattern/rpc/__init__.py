"""RPC: trackers, servers and sessions on remote devices, without TVM's ways to wait for ever."""
