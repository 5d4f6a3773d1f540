"""The prune command as a program of its own, for tests that kill it or run several."""

from tvm_pattern.prune_cli import app

if __name__ == "__main__":
    app()
