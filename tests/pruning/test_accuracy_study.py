"""The accuracy study: equal rates, untouched test images, resuming, and honest tables."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from benchmarks import accuracy, digits
from benchmarks.accuracy_summary import comparisons, paired, to_markdown, write_summary
from tvm_pattern.pruning.config import PatternConfig
from tvm_pattern.pruning.oneshot import prune_config

TINY = accuracy.Settings(
    pretrain_epochs=1, epochs=2, gradual_epochs=1, ramp_epochs=1, admm_epochs=1
)


@pytest.mark.parametrize("rate", accuracy.RATES)
@pytest.mark.parametrize("group", [1, 16])
def test_pattern_trials_have_the_asked_rate(rate, group):
    trial = accuracy.Trial("gradual", rate, group=group)
    config = accuracy.pattern_config(trial, accuracy.Settings())
    assert isinstance(config, PatternConfig)
    model = digits.network()
    prune_config(model, config)
    assert accuracy.compression_rate(model) == pytest.approx(rate, rel=0.015)


@pytest.mark.parametrize("allocation", [0.0, 0.5])
@pytest.mark.parametrize("rate", accuracy.RATES)
def test_filter_networks_are_just_small_enough(rate, allocation):
    model = digits.network(accuracy.filter_widths(rate, allocation))
    assert rate <= accuracy.compression_rate(model) < 1.1 * rate


def test_densities_meet_the_budget_and_their_ceiling():
    sizes = {n: w.numel() for n, w in accuracy.conv_weights(digits.network()).items()}
    shares = accuracy.layer_densities(8, 0.5, 4 / 9)
    assert max(shares.values()) <= 4 / 9
    kept = 144 + sum(shares[n] * sizes[n] for n in shares)
    assert kept == pytest.approx(sum(sizes.values()) / 8)


def test_test_images_are_the_same_for_every_seed_and_apart_from_training():
    a, b = digits.load(0), digits.load(1)
    assert torch.equal(a.test[0], b.test[0])
    assert torch.equal(a.test[1], b.test[1])
    assert not torch.equal(a.bank[0], b.bank[0])
    assert len(a.bank[0]) + (len(a.validation[1]) + len(a.test[1])) // 8 == 1797


def test_a_study_resumes_and_refuses_other_settings(tmp_path):
    path = tmp_path / "a.json"
    console = Console(file=io.StringIO())
    wanted = [accuracy.Trial("filter", 16), accuracy.Trial("oneshot", 16)]
    accuracy.run_study(path, wanted[:1], 1, TINY, console)
    first = json.loads(path.read_text())["rows"]
    study = accuracy.run_study(path, wanted, 1, TINY, console)
    assert study["rows"][0] == first[0]
    assert [r["method"] for r in study["rows"]] == ["filter", "oneshot"]
    assert study["rows"][1]["compression_rate"] == pytest.approx(16, rel=0.01)
    assert {"hard_test", "hard_bn_test"} <= set(study["rows"][1])
    with pytest.raises(SystemExit, match="other settings"):
        accuracy.run_study(path, wanted, 1, accuracy.Settings(), console)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--seeds", "0"], "at least 1"), (["--only", "zzz"], "no trial")]
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--json", str(tmp_path / "a.json"), *arguments])
    assert message in capsys.readouterr().err


def _rows():
    base = {"group": 1, "library": "natural8", "validation": 0.0, "compression_rate": 8.0}
    rows = []
    for seed in range(4):
        for method, rate, test in (
            ("dense", 1, 95.0 + seed),
            ("gradual", 8, 94.0 + seed),
            ("oneshot", 8, 94.0 + seed + (0.5 if seed % 2 else -0.5)),
        ):
            rows.append({**base, "method": method, "rate": rate, "seed": seed, "test": test})
        sweep = {"group": 4, "method": "gradual", "rate": 8, "seed": seed, "test": 90.0 + seed}
        rows.append({**base, **sweep})
        rows.append({**base, **sweep, "sharing": "similar", "test": 90.5 + seed})
    return rows


def test_differences_are_paired_by_seed(tmp_path):
    found = {name: (mean, std, seeds) for name, mean, std, seeds in comparisons(_rows())}
    assert found["gradual - dense at 8x"] == (-1.0, 0.0, 4)
    assert found["gradual - oneshot at 8x"][0] == 0.0
    assert found["gradual 8x, group 4 neighbours - default"] == (-4.0, 0.0, 4)
    assert found["gradual 8x, group 4: similar - neighbours"] == (0.5, 0.0, 4)
    assert paired({1: 3.0, 2: 5.0}, {2: 4.0, 9: 0.0}) == (1.0, 0.0, 1)
    study = {"device": {}, "settings": {}, "rows": _rows()}
    text = to_markdown(study)
    assert "| gradual - oneshot at 8x | +0.00 | 0.58 | 4 | within noise |" in text
    assert "| gradual - dense at 8x | -1.00 | 0.00 | 4 | lower |" in text
    write_summary(study, tmp_path / "a.json")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
