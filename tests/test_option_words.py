"""Errors of the API name the options of the command that was typed."""

from __future__ import annotations

import click
import pytest
import typer

from tvm_pattern import cli
from tvm_pattern.option_words import in_options, options_of


def options(*words: str) -> dict[str, str]:
    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.get_command(click.Context(command), word)
    return options_of(command)


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("compile", "num_threads=0: expected an integer", "--threads 0: expected an integer"),
        ("compile", "h is symbolic; give example_inputs", "h is symbolic; give --shape"),
        ("compile", "example_inputs (--shape) of sizes", "--shape of sizes"),
        ("compile", "or pass verify=False (--no-verify) to", "or pass --no-verify to"),
        ("compile", "verify='graph' checks the import", "--verify-graph checks the import"),
        ("tune", "early_stop must be at least 1", "--early-stop must be at least 1"),
        ("tune", "got repeat=0, expected >= 1", "got --repeat 0, expected >= 1"),
        ("bench", "a longer session_timeout (--session-timeout)", "a longer --session-timeout"),
        ("posttrain", "got size=16, batch=0; expected", "got --image-size 16, --batch 0; expected"),
        ("run", "size=3 of the library", "--size 3 of the library"),
        ("evaluate", "image_size=7 is too small", "--image-size 7 is too small"),
    ],
)
def test_arguments_become_options(command, text, expected):
    assert in_options(text, options(command)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "model and target fit; repeat it",  # words that are options too
        "no such file: logs/early_stop.jsonl",
        "the layer 'tuning_log' has no weights",
        "tuning_logs/ is empty",
        "call tuning_log(path)",
        "warm_start=None is no option of compile",
    ],
)
def test_other_words_stay(text):
    assert in_options(text, options("compile")) == text


def test_a_group_has_the_options_of_its_commands():
    assert options("rpc")["custom_address"] == "--custom-address"
    assert options("kit")["num_threads"] == "--threads"
