"""What computes a layer, asked of a library in memory, loaded, of a file, and of other machines."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import onnx
import pytest
import torch
import tvm
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern import cli
from tvm_pattern.artifact import ArtifactError, manifest_path
from tvm_pattern.compiled_graph import DOMAIN, graph_of, write_onnx
from tvm_pattern.layer_source import Sources, readable_assembly

TARGETS = {
    "pattern/x86-avx2": ("assembly", "vfmadd"),
    "pattern/cortex-a72": ("assembly", "fmla"),
    "pattern/mali": ("OpenCL C", "__kernel void"),
}


class Net(nn.Module):
    """Two convolutions, a residual and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.first(x))
        return self.second(x) + x, torch.split(x, 4, 1)[1]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Net().eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return model


@pytest.fixture(scope="module")
def libraries(model):
    x = torch.zeros(1, 3, 8, 8)
    return {name: tp.compile(model, x, name, verify=False) for name in TARGETS}


@pytest.fixture(scope="module")
def files(libraries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {name: lib.export(folder / f"{name[8:]}.so") for name, lib in libraries.items()}


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_tir_and_code_of_a_layer(libraries, files, target):
    language, instruction = TARGETS[target]
    source = libraries[target].source("second")
    names = [function.name for function in source.functions]
    assert names[0].startswith("pattern_conv2d")
    assert source.functions[0].language == language
    assert "T.prim_func" in source.functions[0].tir
    assert instruction in source.functions[0].code
    assert all(text in str(source) for f in source.functions for text in (f.tir.strip(), f.name))
    # The file of another machine gives the same.
    code, shown, error = run("inspect", files[target], "--source", "second")
    assert (code, shown.strip()) == (0, str(source).strip()), error


@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_loaded_libraries_have_their_sources(libraries, tmp_path, suffix):
    lib = libraries["pattern/x86-avx2"]
    loaded = tp.load(lib.export(tmp_path / f"net{suffix}"))
    assert loaded.source("first") == lib.source("first")


def test_the_tir_is_what_runs(libraries):
    """Read back from its text and built by itself, it lays pixels out as planes."""
    lib = libraries["pattern/x86-avx2"]
    (function,) = lib.source("pack_planes").functions
    func = tvm.script.from_source(function.tir)
    shape = lib.manifest.steps[1]["inputs"][0]["shape"]
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype("float32")
    out = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    built = tvm.compile(func.with_attr("global_symbol", "pack_planes"), lib.target)
    built["pack_planes"](tvm.runtime.tensor(x), out)
    kept = out.numpy()[out.numpy() != 0]  # the rest is the border
    np.testing.assert_array_equal(np.sort(kept), np.sort(x.ravel()))


def test_assembly_without_noise(libraries):
    text = libraries["pattern/cortex-a72"].source("first").functions[0].code
    assert "__tvm_ffi_" in text
    for noise in (".cfi_", ".loc", ".Ltmp", ".debug", "byte_offset", "__extendhfsf2"):
        assert noise not in text
    assert readable_assembly(
        "f:\n\tret\n\t.type\t.L.str,@object\n.L.str:\n\n.LCPI:\n\t.long 1\n"
    ) == ("f:\n\tret\n\n.LCPI:\n\t.long 1\n")


def test_all_layers(files):
    code, shown, error = run("inspect", files["pattern/x86-avx2"], "--source", "all", "--json")
    assert code == 0, error
    found = json.loads(shown)
    assert {"first", "second"} <= {item["layer"] for item in found}
    assert all(f["tir"] and f["code"] for item in found for f in item["functions"])


def test_unknown_layers(libraries, files):
    with pytest.raises(ValueError, match=r"no layer 'secnd' in this library; .* 'second'"):
        libraries["pattern/x86-avx2"].source("secnd")
    code, _, error = run("inspect", files["pattern/mali"], "--source", "secnd")
    assert code == 1
    assert "no layer 'secnd'" in error


def test_files_without_sources_and_damaged_ones(files, tmp_path):
    plain = tmp_path / "plain.so"
    plain.write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="holds no sources; compile and export it again"):
        Sources.read(plain).of_layer("first", [], None)
    with pytest.raises(ArtifactError, match="holds no graph"):
        write_onnx(tmp_path / "g.onnx", {}, None)
    damaged = tmp_path / "damaged.so"
    with zipfile.ZipFile(files["pattern/mali"]) as archive:
        offset = archive.getinfo("graph.json").header_offset
    data = bytearray(files["pattern/mali"].read_bytes())
    data[offset + 45 : offset + 60] = bytes(15)
    damaged.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"the sources in .* are damaged"):
        Sources.read(damaged)


def test_sources_of_another_tvm(files, tmp_path):
    path = tmp_path / "old.so"
    path.write_bytes(files["pattern/x86-avx2"].read_bytes())
    manifest = json.loads(manifest_path(files["pattern/x86-avx2"]).read_text())
    manifest["versions"]["tvm"] = "0.1"
    manifest_path(path).write_text(json.dumps(manifest))
    code, _, error = run("inspect", path, "--source", "first")
    assert code == 1
    assert "was compiled by TVM 0.1" in error


@pytest.mark.parametrize("target", TARGETS)
def test_graph_for_viewers(files, tmp_path, target):
    path = tmp_path / "graph.onnx"
    code, _, error = run("inspect", files[target], "--graph", path)
    assert code == 0, error
    graph_model = onnx.load(path)
    onnx.checker.check_model(graph_model)
    graph = graph_model.graph
    assert {node.domain for node in graph.node} == {DOMAIN}
    shapes = [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output]
    assert shapes == [[1, 8, 8, 8], [1, 4, 8, 8]]
    convolutions = [node for node in graph.node if node.op_type == "pattern_conv2d"]
    assert [node.name.split("/")[0] for node in convolutions] == ["first", "second"]
    facts = {a.name: onnx.helper.get_attribute_value(a) for a in convolutions[1].attribute}
    assert facts["out_shape"] == [1, 8, 8, 8]
    assert facts["sparsity"] == pytest.approx(1 - 4 / 18, abs=0.01)
    # The second reads what the first wrote, twice: as its image and as the residual.
    assert list(convolutions[1].input) == [convolutions[0].output[0]] * 2


def test_graphs_of_any_values():
    """Tuples, parts of them, and values of one name."""
    from tvm.script import ir as I
    from tvm.script import relax as R

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((4, 2), "float32"), n: R.Tensor((2,), "int64")):
            with R.dataflow():
                parts = R.split(x, 2)
                x1 = parts[0]
                y = R.add(x1, R.const([[1.0, 2.0]], "float32"))
                gv = (y, n)
                R.output(gv)
            return gv

    graph = graph_of(Module, {"y": "block.add"})
    assert [node["op"] for node in graph["nodes"]] == ["split", "TupleGetItem", "add"]
    assert graph["nodes"][2] == {
        "layer": "block.add",
        "op": "add",
        "inputs": ["x1"],
        "weights": ["float32[1, 2]"],
        "output": "y",
    }
    assert graph["outputs"] == ["y", "n"]
    assert graph["values"]["n"] == {"shape": [2], "dtype": "int64"}
    assert graph["values"]["parts"] == {}
