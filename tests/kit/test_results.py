"""``kit read``: results are checked, added by device, and garbage is refused in one line."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tvm_pattern.cli import app
from tvm_pattern.kit import KitError, read_result
from tvm_pattern.kit.results import add_results

RESULT = {
    "format": 1,
    "kit": {"name": "net", "target": "pattern/a", "version": "1", "digest": "0123456789abcdef"},
    "threads": 1,
    "runs": 3,
    "warm_up": 1,
    "cool_down_s": 0,
    "time": 100,
    "device": {
        "name": "Phone",
        "hardware": "",
        "machine": "aarch64",
        "system": "Linux",
        "release": "5",
        "celsius_before": 30.0,
        "celsius_after": 35.5,
        "cpus": [
            {
                "part": "0x41 0xd0b",
                "governor": "schedutil",
                "used": True,
                "max_khz": 2800000,
                "khz_before": 1000000,
                "khz_after": 2800000,
            }
        ],
        "gpu": None,
    },
    "rows": [
        {
            "engine": engine,
            "max_abs_error": 0,
            "samples_ms": [scale, 2 * scale, 3 * scale],
            "median_ms": 2 * scale,
            "p10_ms": 1.2 * scale,
            "p90_ms": 2.8 * scale,
        }
        for engine, scale in (("sparse", 1.0), ("dense", 4.0))
    ],
}


def changed(path: str, value: object) -> dict:
    """The result with one field replaced; ``None`` removes it."""
    result = copy.deepcopy(RESULT)
    *places, last = path.split("/")
    part: dict = result
    for place in places:
        part = part[int(place) if isinstance(part, list) else place]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return result


def test_read(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert read_result(path).speedup == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([], "is no result of a kit"),
        ({"format": 2}, "its format is '2', expected 1"),
        (changed("extra", 1), "the field 'extra'"),
        (changed("device/name", None), "the field 'device.name': field required"),
        (changed("device/serial", "x"), "the field 'device.serial'"),
        (changed("rows/0/median_ms", "fast"), "the field 'rows.0.median_ms'"),
        (changed("rows/0/median_ms", 0.5), "figures of sparse are not those of its samples"),
        (changed("rows/0/samples_ms", [2.0]), "figures of sparse are not those of its samples"),
        (changed("rows/0/samples_ms", [1.0, float("nan"), 3.0]), "rows.0.samples_ms.1"),
        (changed("rows/1/engine", "sparse"), "rows of sparse, sparse; expected sparse and dense"),
        (changed("kit/digest", "xyz"), "the field 'kit.digest'"),
    ],
)
def test_foreign_or_edited(tmp_path, data, told):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(data))
    with pytest.raises(KitError) as caught:
        read_result(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b'{"format": 1', b"[" * 100000])
def test_garbage(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(KitError, match="is no whole JSON"):
        read_result(path)


def test_missing(tmp_path):
    with pytest.raises(KitError, match=r"cannot read .*No such file"):
        read_result(tmp_path / "none.json")


def test_devices_stay_apart_and_later_runs_replace(tmp_path):
    path = tmp_path / "phones.json"
    results = []
    for name, time in (("A", 1), ("B", 2), ("A", 3), ("A", 2)):
        data = changed("device/name", name)
        data["time"] = time
        file = tmp_path / "r.json"
        file.write_text(json.dumps(data))
        results.append(read_result(file))
    add_results(path, results[:2])
    every = add_results(path, results[2:])
    assert [(r.device["name"], r.time) for r in every] == [("A", 3), ("B", 2)]
    table = path.with_suffix(".md").read_text()
    assert table.count("| net |") == 2
    assert "2 [1.2, 2.8]" in table
    assert "4.00x" in table
    assert "30 to 36" in table


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "phones.json"
    path.write_text('{"rows": []}')
    file = tmp_path / "r.json"
    file.write_text(json.dumps(RESULT))
    with pytest.raises(KitError, match="no file of kits' results"):
        add_results(path, [read_result(file)])
    assert path.read_text() == '{"rows": []}'


def test_command(tmp_path):
    file, out = tmp_path / "r.json", tmp_path / "phones.json"
    file.write_text(json.dumps(RESULT))
    done = CliRunner().invoke(
        app, ["kit", "read", str(file), "--name", "Pixel | 6", "-o", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)
    assert (row["device"]["name"], row["speedup"]) == ("Pixel | 6", 4.0)
    assert "| Pixel / 6 |" in out.with_suffix(".md").read_text()


def test_a_model_needs_no_make():
    """What follows ``kit`` and is no command is a model."""
    for words in (["kit", "nothing"], ["kit", "make", "nothing"]):
        done = CliRunner().invoke(app, [*words, "-o", "x", "--target", "pattern/native"])
        assert done.exit_code == 1
        assert "model 'nothing'" in done.stderr


def test_read_needs_neither_tvm_nor_torch(tmp_path):
    file = tmp_path / "r.json"
    file.write_text(json.dumps(RESULT))
    code = (
        "import sys; sys.modules['tvm'] = sys.modules['torch'] = None\n"
        "from tvm_pattern.cli import app; app(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "kit", "read", str(file), "-o", str(tmp_path / "p.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_command_with_garbage(tmp_path):
    file = tmp_path / "r.json"
    file.write_text("{}")
    done = CliRunner().invoke(app, ["kit", "read", str(file), "-o", str(tmp_path / "p.json")])
    assert done.exit_code == 1
    done = CliRunner().invoke(app, ["kit", "read", str(file), str(file), "--name", "x"])
    assert done.exit_code == 2
