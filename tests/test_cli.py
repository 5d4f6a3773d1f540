"""The command line: help that teaches, JSON that parses, errors without tracebacks."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
import warnings

import click
import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern import cli, model_options, sources, terminal
from tvm_pattern.artifact import manifest_path
from tvm_pattern.pruning import pictures
from tvm_pattern.pruning.command import build_model


def small_net() -> nn.Module:
    """Found by the factory syntax of the command line."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def no_net() -> str:
    return "no module"


FACTORY = f"{__name__}:small_net"


@pytest.fixture(autouse=True)
def usual_volume():
    """As it was, for the other tests of this process."""
    levels = {name: logging.getLogger(name).level for name in terminal._PACKAGES}
    handlers = list(logging.root.handlers)
    yield
    terminal.set_volume(0)
    logging.root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(*arguments):
    """Exit code, standard output, standard error."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def run_json(*arguments):
    code, output, error = run(*arguments, "--json")
    assert code == 0, error
    return json.loads(output)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "net.so"
    code, output, error = run(
        "compile", FACTORY, "--shape", "1x3x9x11", "--connectivity", 2, "--threads", 1, "-o", path
    )
    assert code == 0, error
    assert "2 of 2 convolutions taken" in output
    assert str(manifest_path(path)) in output.replace("\n", "")
    return path


@pytest.mark.parametrize("command", ["targets", "compile", "run", "inspect"])
def test_help_of_each_command(command):
    assert command in run("--help")[1]
    code, output, _ = run(command, "--help")
    assert code == 0
    assert "--json" in output


def every_command(group=None, path=()):
    """Words of every command there is, mounted ones and those of groups included."""
    group = group or typer.main.get_command(cli.app)
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_help_has_an_example_that_parses():
    for words, command in every_command():
        found = re.findall(r"Example: tvm-pattern (.*)", command.help)
        assert found, f"{' '.join(words)} --help has no example"
        for example in found:
            arguments = shlex.split(example)
            assert tuple(arguments[: len(words)]) == words
            command.make_context(words[-1], arguments[len(words) :])


def test_the_list_of_commands_says_what_the_commands_say():
    context = click.Context(typer.main.get_command(cli.app))
    for name, (module, summary) in cli.MOUNTED.items():
        own = typer.main.get_command(cli.app).get_command(context, name)
        said = " ".join((own.help or "").split())
        assert said.startswith(summary.split(":")[0].rstrip(".")), (module, said)


def test_volume_is_taken_from_anywhere():
    take = terminal.take_volume
    assert take(["compile", "net", "-q", "-o", "a.so"]) == (-1, ["compile", "net", "-o", "a.so"])
    assert take(["-v", "run", "--verbose", "a.so"]) == (2, ["run", "a.so"])
    assert take(["run", "-vv"]) == (2, ["run"])
    assert take(["run", "--", "-q"]) == (0, ["run", "--", "-q"])
    code, _, error = run("targets", "-q", "-v")
    assert code == 2
    assert "got --verbose and --quiet" in error


def test_quiet_and_verbose(library, tmp_path):
    graph = tmp_path / "g.onnx"
    assert "wrote" in run("inspect", library, "--graph", graph)[2]
    assert run("inspect", library, "--graph", graph, "-q") == (0, "", "")
    assert run("inspect", library, "--quiet", "--json")[1].startswith("{")
    code, _, error = run("inspect", "none.so", "-q")
    assert code == 1
    assert "error: no manifest none.so.json" in error
    assert logging.getLogger("tvm_pattern").level == logging.ERROR
    code, _, error = run("compile", FACTORY, "--shape", "1x3x9x11", "-o", tmp_path / "v.so", "-v")
    assert code == 0
    assert re.search(r"import of the model: \d+\.\d\d s", error)


def test_logs_check_json(tmp_path):
    log = tmp_path / "a.jsonl"
    log.write_text("no record\n")
    code, output, _ = run("logs", "check", log, "--json")
    assert code == 1
    (found,) = json.loads(output)["logs"]
    assert (found["log"], found["records"], len(found["bad_lines"])) == (str(log), 0, 1)


LIGHT = """
import sys
for name in ("tvm", "torch"):
    sys.modules[name] = None
from tvm_pattern.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    sys.exit(end.code)
"""


def light(*arguments):
    """A command in a process that has neither TVM nor torch."""
    command = [sys.executable, "-c", LIGHT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_needs_neither_tvm_nor_torch(library, tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    for arguments in (
        ("--help",),
        ("--version",),
        ("inspect", library, "--json"),
        ("logs", "merge", tmp_path / "a.jsonl", "-o", tmp_path / "b.jsonl"),
    ):
        done = light(*arguments)
        assert done.returncode == 0, done.stderr
    done = light("rpc", "status", "--tracker", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no tracker answers at 127.0.0.1:1" in done.stderr.replace("\n", " ")


def test_no_help_needs_torch_or_tvm():
    """All of them in one process; tvm_ffi and numpy may be there."""
    lines = [" ".join((*words, "--help")) for words, _ in every_command()]
    assert len(lines) > 20
    code = """
import sys
from typer.testing import CliRunner
from tvm_pattern import cli
for line in sys.stdin.read().splitlines():
    assert CliRunner().invoke(cli.app, line.split()).exit_code == 0, line
    assert not {"torch", "tvm"} & set(sys.modules), line
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_options_prepare_pictures_as_the_trainer_does():
    assert model_options.IMAGENET_MEAN == pictures.IMAGENET_MEAN
    assert model_options.IMAGENET_STD == pictures.IMAGENET_STD


def test_version():
    code, output, _ = run("--version")
    assert code == 0
    assert output.startswith(f"tvm-pattern {tp.__version__}\napache-tvm 0.27")


def test_targets():
    rows = {row["target"]: row for row in run_json("targets")}
    assert set(rows) == set(tp.targets())
    assert rows["pattern/native"]["runs_here"]
    assert rows["pattern/cortex-a53"]["architecture"] == "aarch64"
    code, output, _ = run("targets")
    assert code == 0
    assert "pattern/native" in output


def test_compile_json(tmp_path):
    path = tmp_path / "net.tar"
    result = run_json("compile", FACTORY, "--shape", "1x3x9x11", "-o", path)
    assert result["files"] == [str(path), str(manifest_path(path))]
    assert result["size_bytes"] == path.stat().st_size
    assert [row["layer"] for row in result["report"]] == ["0", "2"]
    assert result["verification"]["status"] == "checked"
    assert [row["sparsity"] for row in result["report"]] == [0, 0]


def test_compile_without_a_check(tmp_path):
    arguments = ("compile", FACTORY, "--shape", "1x3x9x11", "-o", tmp_path / "net.tar")
    code, output, error = run(*arguments, "--no-verify")
    assert code == 0, error
    assert "not checked: verify=False" in output
    code, _, error = run(*arguments, "--no-verify", "--verify-graph")
    assert code == 2
    assert "--no-verify and --verify-graph" in error
    arguments = (*arguments, "--target", "pattern/cortex-a76", "--verify-graph")
    assert run_json(*arguments)["verification"]["subject"] == "imported graph"


def test_exported_program_and_weights(tmp_path):
    model = small_net().eval()
    image = torch.randn(1, 3, 9, 11)
    torch.export.save(torch.export.export(model, (image,)), tmp_path / "net.pt2")
    code, _, error = run("compile", tmp_path / "net.pt2", "-o", tmp_path / "net.so")
    assert code == 0, error
    with torch.no_grad():
        np.testing.assert_allclose(
            tp.load(tmp_path / "net.so")(image), model(image).numpy(), atol=1e-5
        )


def test_files_are_pruned_at_once(tmp_path):
    model = small_net().eval()
    image = torch.randn(1, 3, 9, 11)
    torch.export.save(torch.export.export(model, (image,)), tmp_path / "net.pt2")
    torch.onnx.export(model, (image,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    rate = ("--connectivity", 2, "--connectivity-1x1", 2, "--threads", 1)
    for name in ("net.pt2", "net.onnx"):
        path = tmp_path / f"{name}.tar"
        rows = run_json("compile", tmp_path / name, *rate, "-o", path)["report"]
        assert [round(row["sparsity"], 2) for row in rows] == [0.56, 0.5]


def test_rates_that_would_have_no_effect(tmp_path):
    for options in (
        ("--group", 4),
        ("--connectivity-1x1", 2),
        ("--group", 4, "--connectivity-1x1", 2),
    ):
        words = ("--shape", "1x3x9x9", *options, "-o", tmp_path / "net.tar")
        code, _, error = run("compile", FACTORY, *words)
        assert code == 1
        assert "without --connectivity; nothing is pruned" in error.replace("\n", " ")


def test_run(library, tmp_path):
    image = np.random.default_rng(0).standard_normal((1, 3, 9, 11)).astype("float32")
    np.save(tmp_path / "x.npy", image)
    result = run_json(
        "run", library, "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npz", "--repeat", 3
    )
    want = tp.load(library)(image)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["output0"], want)
    assert result["outputs"][0]["shape"] == [1, 4, 9, 11]
    assert result["outputs"][0]["max"] == pytest.approx(float(want.max()))
    assert result["timing"]["runs"] == 3
    assert result["timing"]["p10_ms"] <= result["timing"]["median_ms"]
    assert run_json("run", library, "--repeat", 0)["timing"] is None
    code, output, _ = run("run", library, "--repeat", 1)
    assert code == 0
    assert "latency: min" in output
    code, output, _ = run("run", library, "--repeat", 1, "--profile", "--sort")
    assert code == 0
    assert "all / whole run" in output


def test_compare(library):
    data = run_json("compare", library, library, "--repeat", 2)
    assert data["max_abs_error"] == 0
    assert data["ratio_p10"] <= data["ratio"] <= data["ratio_p90"]
    code, output, _ = run("compare", library, library, "--repeat", 2)
    assert code == 0
    assert "outputs differ by at most 0.00e+00" in output


def test_a_library_that_takes_nothing_warns(library, tmp_path):
    manifest = json.loads(manifest_path(library).read_text())
    rows = [{**row, "taken": False, "reason": "no schedules"} for row in manifest["report"]]
    (tmp_path / "other.so.json").write_text(json.dumps({**manifest, "report": rows}))
    code, _, error = run("inspect", tmp_path / "other.so")
    assert code == 0
    assert "warning: none of 2 convolutions" in error
    assert run("inspect", library)[2] == ""


def test_inspect(library):
    data = run_json("inspect", library)
    assert data["runs_here"]
    assert data["inputs"] == [{"name": "input", "shape": [1, 3, 9, 11], "dtype": "float32"}]
    code, output, _ = run("inspect", library)
    assert code == 0
    assert "float32[1, 3, 9, 11]" in output
    assert "gnu, pages of up to" in output
    assert "2 of 2 convolutions taken" in output


def test_inspect_reads_libraries_of_other_machines(library, tmp_path):
    manifest = json.loads(manifest_path(library).read_text())
    path = tmp_path / "other.so.json"
    path.write_text(json.dumps({**manifest, "architecture": "riscv64"}))
    code, output, _ = run("inspect", tmp_path / "other.so")
    assert code == 0
    assert "no: it is built for riscv64" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compile", "nothing", "-o", "x.so"), "expected a file ending in .onnx or .pt2"),
        (("compile", "none.onnx", "-o", "x.so"), "no such file: none.onnx"),
        (("compile", "none.pt2", "-o", "x.so"), "no such file: none.pt2"),
        (("compile", "none:net", "-o", "x.so"), "expected package.module:factory"),
        (("compile", f"{__name__}:none", "-o", "x.so"), "expected package.module:factory"),
        (("compile", f"{__name__}:no_net", "-o", "x.so"), "returned a str, expected a torch"),
        (("compile", FACTORY, "-o", "x.so"), "name them by --shape, such as --shape 1x3x224x224"),
        (("tune", "--model", FACTORY), "name them by --shape, such as --shape 1x3x224x224"),
        (("kit", "make", FACTORY, "-o", "k"), "name them by --shape, such as --shape 1x3x224x224"),
        (("compile", FACTORY, "--shape", "1x3xx", "-o", "x.so"), "expected sizes joined by x"),
        (("compile", "a.onnx", "--weights", "w.safetensors", "-o", "x.so"), "leave out --weights"),
        (("compile", FACTORY, "--weights", "none.safetensors", "-o", "x.so"), "none.safetensors"),
        (
            ("compile", FACTORY, "--shape", "1x3x9x9", "--target", "pattern/no", "-o", "x.so"),
            "unknown target 'pattern/no'",
        ),
        (("compile", FACTORY, "--shape", "1x3x9x9", "-o", "x.txt"), "ending in .so or .tar"),
        (("compile", FACTORY, "--shape", "1x3x9x9", "-o", "no/x.so"), "no such folder: no"),
        (("run", "none.so"), "no such library: none.so"),
        (("inspect", "none.so"), "no manifest none.so.json"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, error = run(*arguments)
    assert code == 1
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error
    assert output == ""


def test_bad_files(library, tmp_path):
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no array")
    assert "is not an .npy file" in run("run", library, "-i", bad)[2].replace("\n", " ")
    assert "no such file" in run("run", library, "-i", tmp_path / "none.npy")[2]
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 9, 10), "float32"))
    assert "got shape [1, 3, 9, 10]" in run("run", library, "-i", tmp_path / "x.npy")[2]
    program = tmp_path / "bad.pt2"
    program.write_bytes(b"no program")
    error = run("compile", program, "-o", tmp_path / "x.so")[2]
    assert "is not a readable exported program" in error


def test_warnings_are_in_the_words_of_the_command(tmp_path, monkeypatch):
    def opened(*_, **__):
        warnings.warn("num_threads=99 [x]", stacklevel=1)
        raise ValueError("num_threads=98")

    monkeypatch.setattr(sources, "open_model", opened)
    code, _, error = run("compile", FACTORY, "-o", tmp_path / "x.so")
    assert code == 1
    assert error.splitlines()[-2:] == ["warning: --threads 99 [x]", "error: --threads 98"]
    assert "warning" not in run("compile", FACTORY, "-o", tmp_path / "x.so", "-q")[2]


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(cli.app, ["--debug", "run", "none.so"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run"],
        ["run", "x.so", "--repeat", "-1"],
        ["compile", "resnet50"],
        ["compile", FACTORY, "--connectivity", "0.5", "-o", "x.so"],
        ["compile", FACTORY, "--connectivity", "2", "--group", "0", "-o", "x.so"],
        ["compile", FACTORY, "--threads", "0", "-o", "x.so"],
        ["tune", "--model", FACTORY, "--tracker", "127.0.0.1:1"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments):
    assert run(*arguments)[0] == 2


def test_weights_are_loaded_into_the_network(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "tvm_pattern.pruning.load_pruned", lambda path, model: loaded.append((path, model))
    )
    model = sources.open_model(FACTORY, tmp_path / "w.safetensors")
    assert loaded == [(tmp_path / "w.safetensors", model)]
    assert not model.training


def test_a_factory_in_the_current_folder(tmp_path, monkeypatch):
    """Pruning and compiling call it alike, whether or not it takes the number of classes."""
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def fixed():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
        "def sized(num_classes=2):\n    return nn.Sequential(nn.Conv2d(3, num_classes, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    before = list(sys.path)
    for name, filters in (("fixed", (4, 4)), ("sized", (2, 7))):
        compiled = sources.open_model(f"own_net:{name}")
        pruned = build_model(f"own_net:{name}", 7)
        assert (compiled[0].out_channels, pruned[0].out_channels) == filters
    assert sys.path == before


def test_mounted_commands_are_loaded_when_used(monkeypatch):
    monkeypatch.setitem(cli.MOUNTED, "again", ("tvm_pattern.cli", "Again."))
    assert "again" in run("--help")[1]
    assert "pattern/native" in run("again", "targets")[1]


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "tvm_pattern.cli", "run", "none.so"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no such library: none.so")
