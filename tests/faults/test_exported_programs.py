"""Opening a ``.pt2``: damaged ones are refused in one line, malicious ones run nothing."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tvm_pattern import sources
from tvm_pattern.exported_program import UntrustedFileError, load_exported_program


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 8, 8),)), path)
    return path


class _Writes:
    """Unpickling an object of this class creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _torch_pickle(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _rewrite(source: Path, to: Path, change) -> Path:
    """A copy of an archive with ``change(name, bytes) -> bytes`` applied to every record."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return to


def _evil_inputs(name, data, trap):
    return _torch_pickle(((trap,), {})) if "sample_inputs" in name else data


def _evil_weight(name, data, trap):
    if name.endswith("weights_config.json"):
        config = json.loads(data)
        config["config"]["0.weight"]["use_pickle"] = True
        return json.dumps(config).encode()
    return _torch_pickle(trap) if name.endswith("weight_0") else data


def _evil_constant(prefix):
    def change(name, data, trap):
        if name.endswith("constants_config.json"):
            facts = {
                "path_name": f"{prefix}../sample_inputs/model.pt",
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }
            return json.dumps({"config": {"c": facts}}).encode()
        return data

    return change


def _evil_shape(name, data, trap):
    if not name.endswith("models/model.json"):
        return data
    program = json.loads(data)
    code = f"__import__('pathlib').Path({str(trap.path)!r}).touch()"
    expression = {"as_expr": {"expr_str": code, "hint": None}}
    values = program["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = expression
    return json.dumps(program).encode()


def _evil_enum(name, data, trap):
    if not name.endswith("models/model.json"):
        return data
    program = json.loads(data)
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    spec = [1, {"type": "builtins.list", "context": '{"__enum__": true, "fqn": "this:x"}'}]
    call["in_spec"] = json.dumps(spec)
    return json.dumps(program).encode()


ATTACKS = {
    "example inputs": (_evil_inputs, "sample_inputs/model.pt"),
    "pickled weight": (_evil_weight, "0.weight"),
    "script object": (_evil_constant("custom_obj_"), "a pickled object"),
    "opaque object": (_evil_constant("opaque_obj_"), "a pickled object"),
    "shape expression": (_evil_shape, "a symbolic shape"),
    "enumeration": (_evil_enum, "an enumeration"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_runs_without_trust(attack, program, tmp_path):
    change, message = ATTACKS[attack]
    trap = _Writes(tmp_path / "owned")
    evil = _rewrite(program, tmp_path / "evil.pt2", lambda n, d: change(n, d, trap))
    with pytest.raises(UntrustedFileError, match=message) as caught:
        sources.open_model(str(evil))
    assert "--trust" in str(caught.value)
    assert not trap.path.exists()


@pytest.mark.parametrize("attack", ["example inputs", "pickled weight", "shape expression"])
def test_the_attacks_are_real(attack, program, tmp_path):
    """With trust the same files do run their code, so the refusals above protect from something."""
    trap = _Writes(tmp_path / "owned")
    change, _ = ATTACKS[attack]
    evil = _rewrite(program, tmp_path / "evil.pt2", lambda n, d: change(n, d, trap))
    with contextlib.suppress(ValueError):  # most are no programs afterwards
        load_exported_program(evil, trust=True)
    assert trap.path.exists()


def test_compiled_parts_and_old_forms_are_refused(program, tmp_path):
    compiled = tmp_path / "compiled.pt2"
    compiled.write_bytes(program.read_bytes())
    with zipfile.ZipFile(compiled, "a") as archive:
        archive.writestr("net/data/aotinductor/model/x.so", b"\x7fELF")
    with pytest.raises(UntrustedFileError, match="a compiled library"):
        load_exported_program(compiled)
    old = tmp_path / "old.pt2"
    trap = _Writes(tmp_path / "owned")
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(trap))
    with pytest.raises(ValueError, match="not a readable exported program"):
        load_exported_program(old)
    assert not trap.path.exists()


def test_a_good_program_needs_no_trust(program, tmp_path):
    image = torch.randn(1, 3, 8, 8)
    want = load_exported_program(program, trust=True).module()(image)
    torch.testing.assert_close(sources.open_model(str(program)).module()(image), want)


def test_damaged_programs_are_refused_in_one_line(program, tmp_path):
    generator = random.Random(0)
    data = program.read_bytes()
    path = tmp_path / "bad.pt2"
    refused = 0
    for number in range(60):
        mutant = bytearray(data[: generator.randrange(len(data))] if number % 3 == 0 else data)
        for _ in range(16 if number % 3 else 0):
            mutant[generator.randrange(len(mutant))] = generator.randrange(256)
        path.write_bytes(mutant)
        try:
            message = str(load_exported_program(path))
        except ValueError as error:
            message = str(error)
            refused += 1
        assert "ExportedProgram" in message or (str(path) in message and "\n" not in message)
    assert refused > 30
