"""Entries of the code cache: whole or not there, bounded, private, shared by processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_pattern import code_cache
from tvm_pattern.code_cache import CodeCache, from_environment

KEY, OTHER = "a" * 64, "b" * 64
CODE = bytes(range(256)) * 8
MEGABYTE = 1 << 20


@pytest.fixture
def cache(tmp_path) -> CodeCache:
    return CodeCache(tmp_path / "deep" / "cache", MEGABYTE)


def entry(cache: CodeCache, key: str = KEY) -> Path:
    return cache.folder / f"{key}.code"


def test_what_was_written_is_read(cache):
    assert cache.read(KEY) is None
    cache.write({KEY: CODE, OTHER: b""})
    assert cache.read(KEY) == CODE
    assert cache.read(OTHER) == b""
    cache.write({KEY: b"new"})
    assert cache.read(KEY) == b"new"


def test_only_its_user_can_look_and_write(cache):
    cache.write({KEY: CODE})
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert entry(cache).stat().st_mode & 0o777 == 0o600


def test_a_damaged_entry_is_not_code(cache, caplog):
    cache.write({KEY: CODE})
    whole = entry(cache).read_bytes()
    middle = len(whole) // 2
    damaged = [
        b"",
        whole[:20],
        whole[:middle],
        whole[:-1],
        whole + b"\0",
        b"\0" * len(whole),
        *(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, 25, middle)),
    ]
    for content in damaged:
        entry(cache).write_bytes(content)
        assert cache.read(KEY) is None
    assert caplog.text.count("is damaged") == len(damaged)


def test_an_entry_under_another_key_is_not_code(cache):
    cache.write({KEY: CODE})
    os.rename(entry(cache), entry(cache, OTHER))
    assert cache.read(OTHER) is None


def test_what_was_used_last_stays(tmp_path):
    cache = CodeCache(tmp_path / "cache", 10_000)
    keys = [f"{number:064d}" for number in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.write({key: b"x" * 3000})
        os.utime(entry(cache, key), (1000 + age, 1000 + age))
    assert cache.read(keys[0]) is not None
    cache.write({keys[3]: b"x" * 3000})
    assert {path.name for path in cache.folder.iterdir()} == {
        f"{keys[number]}.code" for number in (0, 2, 3)
    }
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.max_bytes


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path):
    cache = CodeCache(tmp_path / "cache", 1000)
    cache.write({KEY: b"x" * 1001, OTHER: b"y"})
    assert [path.name for path in cache.folder.iterdir()] == [entry(cache, OTHER).name]


def test_what_a_killed_writer_left_goes_when_it_is_old(cache):
    cache.write({KEY: CODE})
    old, new = (cache.folder / f".{OTHER}.code.{pid}-beef" for pid in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    foreign = cache.folder / "notes.txt"
    foreign.write_text("not ours")
    os.utime(foreign, (1000, 1000))
    cache.write({OTHER: CODE})
    assert not old.exists()
    assert new.exists()
    assert foreign.exists()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(cache, caplog, mode):
    cache.write({KEY: CODE})
    cache.folder.chmod(mode)
    assert cache.read(KEY) is None
    assert "others can write to it" in caplog.text
    assert "chmod 700" in caplog.text
    cache.write({OTHER: CODE})
    assert not entry(cache, OTHER).exists()


def test_a_folder_of_another_user_is_not_used(cache, caplog, monkeypatch):
    cache.write({KEY: CODE})
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert cache.read(KEY) is None
    assert "others can write to it" in caplog.text


def test_a_cache_that_cannot_be_made_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    cache = CodeCache(tmp_path / "file" / "cache", MEGABYTE)
    cache.write({KEY: CODE})
    assert cache.read(KEY) is None


def test_a_full_disk_is_no_error(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.write({KEY: CODE})
    monkeypatch.setattr(code_cache.os, "replace", full)
    cache.write({OTHER: CODE})
    assert cache.read(OTHER) is None
    assert cache.read(KEY) == CODE
    assert [path.name for path in cache.folder.iterdir()] == [entry(cache).name]


WRITER = """
import sys
from pathlib import Path
from tvm_pattern.code_cache import CodeCache

cache = CodeCache(Path(sys.argv[1]), 40_000)
hits = 0
for turn in range(300):
    key = f"{turn % 7:064d}"
    code = key.encode() * (40 + turn % 7)
    found = cache.read(key)
    assert found in (None, code), key
    hits += found is not None
    cache.write({key: code})
print(hits)
"""


def test_processes_share_it(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache")]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        hits, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert int(hits) > 0
        assert "is damaged" not in errors
    files = list((tmp_path / "cache").iterdir())
    assert files
    assert all(path.suffix == ".code" for path in files)


def test_the_environment_says_where_and_how_much():
    home = {"XDG_CACHE_HOME": "/caches"}
    assert from_environment(home) == CodeCache(Path("/caches/tvm-pattern"), 1024 * MEGABYTE)
    assert from_environment({"XDG_CACHE_HOME": "relative"}) == CodeCache(
        Path.home() / ".cache" / "tvm-pattern", 1024 * MEGABYTE
    )
    assert from_environment({"TVM_PATTERN_CACHE": "/here", "TVM_PATTERN_CACHE_MB": "5"}) == (
        CodeCache(Path("/here"), 5 * MEGABYTE)
    )
    assert from_environment({**home, "TVM_PATTERN_CACHE": "0"}) is None
    assert from_environment({**home, "TVM_PATTERN_CACHE_MB": "0"}) is None


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TVM_PATTERN_CACHE", "here", "'here'; expected 0 .* or the absolute path"),
        ("TVM_PATTERN_CACHE", "no", "'no'; expected 0"),
        ("TVM_PATTERN_CACHE_MB", "-1", "'-1'; expected whole megabytes"),
        ("TVM_PATTERN_CACHE_MB", "1e3", "'1e3'; expected whole megabytes"),
        ("TVM_PATTERN_CACHE_MB", "²", "expected whole megabytes"),
    ],
)
def test_an_environment_that_says_neither(variable, value, expected):
    with pytest.raises(ValueError, match=expected):
        from_environment({variable: value})
