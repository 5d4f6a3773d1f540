"""A kit of another processor run here, by QEMU: are its answers right? Its times mean nothing."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ..crosscompile import CrossCompileError, read_elf
from ..machine import machine_architecture
from .errors import KitError
from .results import KitResult, read_result

_EMULATORS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "x86_64": "qemu-x86_64"}
_RUNNER = "runner"
#: Seconds; an emulator takes some hundred times as long as the processor.
PATIENCE = 3600.0


def emulate(kit: Path, patience: float = PATIENCE) -> KitResult:
    """Run both builds of a kit once and hold them against the expected outputs.

    Parameters
    ----------
    kit : pathlib.Path
        A folder that :func:`tvm_pattern.kit.write_kit` made for a CPU.
    patience : float
        Seconds after which it is given up.

    Returns
    -------
    KitResult
        ``rows`` have the largest error of each build.

    Raises
    ------
    KitError
        If it is no kit, the emulator is missing, it takes too long, or an answer is wrong.
    """
    runner = kit / _RUNNER
    if not runner.is_file():
        raise KitError(
            f"{kit} is no kit: it has no {_RUNNER}; expected a folder that tvm-pattern kit make"
            " wrote, for instance with --target pattern/cortex-a76"
        )
    command = [*_emulator(runner), str(runner.resolve()), "--runs", "1", "--warm-up", "0"]
    with tempfile.TemporaryDirectory(prefix="tvm-pattern-") as folder:
        out = Path(folder) / "result.json"
        try:
            done = subprocess.run(
                [*command, "--json", str(out), "--name", "emulated"],
                cwd=kit,
                capture_output=True,
                text=True,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KitError(
                f"{kit} did not end within {patience:.0f} s; make the kit for a smaller --shape"
            ) from None
        except OSError as error:
            raise KitError(f"cannot run {command[0]}: {error.strerror or error}") from None
        if done.returncode != 0:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise KitError(f"{kit} failed under emulation: {said[-800:]}")
        return read_result(out)


def _emulator(runner: Path) -> list[str]:
    """What runs the runner: nothing where this processor does."""
    try:
        architecture = read_elf(runner).architecture
    except CrossCompileError as error:
        raise KitError(str(error)) from None
    if architecture == machine_architecture():
        return []
    name = _EMULATORS.get(architecture)
    if name is None:
        raise KitError(f"no emulator is known for {architecture}; expected {sorted(_EMULATORS)}")
    if shutil.which(name) is None:
        raise KitError(f"no {name} to run code for {architecture}; apt-get install qemu-user")
    return [name, "-cpu", "max"]
