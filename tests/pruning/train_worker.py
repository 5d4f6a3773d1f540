"""The prune command as a program of its own, for tests that kill it or run several."""

from __future__ import annotations

import typer

from tvm_pattern.pruning.cli import register

app = typer.Typer()
register(app)
app.command("other")(lambda: None)

if __name__ == "__main__":
    app()
