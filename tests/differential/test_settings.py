"""Absurd settings, live and from the environment: an answer that says what is wrong, and the logits stay stock's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replay import DEFAULTS
from replayer import Replayer, Run
from scenario import Scenario, Step, assert_same_bits, assert_worked

ABSURD = (
    *("", " ", "-1", "-99999999999999999999", "99999999999999999999", "1e300", "10" + "0" * 300, "nan", "inf", "-inf"),
    *("0x10", "1,5", "1;2", "1e", "+3", "3 ", " 3", "00000", "1.5", "true", "none", "\n\n", "%n%s%x", "a" * 5000),
    *("слоты", "槽 🙂", "\u202e16", "../../../../etc/passwd", "/dev/null", "'; drop table slots; --", "EMU0\n"),
    *("HOTCACHE", "cpu"),
)
# Names of files are not judged until they are read.
NAMES = ("profile", "workload")


@pytest.mark.parametrize("tier", ["CPU", "EMU0"])
def test_absurd_values_are_refused_or_do_no_harm(
    tier: str, model_of: Callable[..., str], stock: Run, cached: Run, emulated: Run
) -> None:
    """Every value for every setting while a context decodes: a refusal names the setting, every token is right."""
    asked: list[tuple[str, str]] = [(key, value) for key in DEFAULTS for value in ABSURD]
    steps: list[Step] = [("prompt", 40), ("decode", 4)]
    for i, (key, value) in enumerate(asked):
        steps += [("try_set", key, value), ("decode", 1), ("restore", key)]
        if i % 100 == 99:
            steps += [("decode", 8), ("rewind", 108)]  # hits again, and room in the context
    # Waiting for promotions after each of many tokens would take longer than they.
    scenario = Scenario(model_of("qwen3moe"), tuple(steps), settled=False)
    outcome = (cached if tier == "CPU" else emulated)(scenario)
    assert_same_bits(stock(scenario), outcome)
    assert_worked(outcome)
    refused = dict(zip(asked, outcome.answers, strict=True))
    for (key, value), answer in refused.items():
        assert not answer or answer.startswith(f"{key}="), (key, value, answer)
        assert len(answer) < 6000
    for key in DEFAULTS:
        if key not in NAMES:
            assert refused[key, "槽 🙂"], key
            assert refused[key, "1e"], key
    for key in ("slots", "bytes", "interval", "promotions", "dwell", "hysteresis", "half_life", "min_sightings"):
        for value in ("", "-1", "nan", "inf", "10" + "0" * 300, "3 ", "true"):
            assert refused[key, value], (key, value)


def test_unknown_settings_and_careless_calls_are_answered(
    model_of: Callable[..., str], stock: Run, cached: Run
) -> None:
    """No such key, null pointers, and too little room for the answer."""
    keys = ("", "nonsense", "slots ", "SLOTS", "HOTCACHE_SLOTS", "слоты", "k" * 5000, "slots=3", "%s%n")
    steps = (("decode", 8), *(("try_set", key, "3") for key in keys), ("misuse",), ("decode", 8))
    scenario = Scenario(model_of("qwen3moe"), steps)
    outcome = cached(scenario)
    for key, answer in zip(keys, outcome.answers, strict=False):
        assert answer.startswith(f"{key}: no such setting; there are ")
    assert outcome.answers[len(keys) :] == ("hotcache_set: null argument",) * 3
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("value", ["-1", "1e300", "nan", "10" + "0" * 300, "槽 🙂", "%n%s", "a" * 5000, "HOTCACHE"])
def test_absurd_environments_are_named_in_the_log(
    value: str, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """Every variable set to the same nonsense: the cache is off, the log names what was ignored, the model runs."""
    environment = {f"HOTCACHE_{key.upper()}": value for key in DEFAULTS if key not in NAMES}
    replay = Replayer(tmp_path, "--as-configured", environment=environment)
    scenario = Scenario(model_of("qwen3moe"))
    outcome = replay(scenario)
    replay.close()
    assert np.array_equal(stock(scenario).logits, outcome.logits)
    ignored = replay.said("hotcache: ignored: ")
    for key in ("slots", "bytes", "policy", "interval", "hysteresis", "path", "prefill", "guard", "reserve"):
        assert f"{key}={value}: must be " in ignored, key


def test_the_environment_alone_switches_the_cache_on(model_of: Callable[..., str], stock: Run, tmp_path: Path) -> None:
    """What anybody else's program does: the plugin, two variables, and the summary in that program's log."""
    replay = Replayer(tmp_path, "--as-configured", environment={"HOTCACHE_DEVICE": "CPU", "HOTCACHE_SLOTS": "8"})
    scenario = Scenario(model_of("qwen3moe"), (("prompt", 40), ("decode", 60)))
    outcome = replay(scenario)
    replay.close()
    assert np.array_equal(stock(scenario).logits, outcome.logits)
    summary = replay.said("hotcache: ").split()
    assert int(summary[summary.index("hits,") - 1]) > 100


@pytest.mark.parametrize("content", ["absent", "empty", "cut short", "junk", "a folder", "endless"])
def test_a_broken_profile_is_named_in_the_log(
    content: str, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """Recorded routing that cannot be read costs its advice and nothing else."""
    path = tmp_path / "profile"
    if content == "a folder":
        path.mkdir()
    elif content == "endless":
        path = Path("/dev/zero")
    elif content != "absent":
        path.write_bytes(
            {"empty": b"", "cut short": b'{"version": 1, "layers": [[', "junk": bytes(range(256)) * 64}[content]
        )
    environment = {"HOTCACHE_DEVICE": "CPU", "HOTCACHE_SLOTS": "6", "HOTCACHE_PROFILE": str(path)}
    replay = Replayer(tmp_path, "--as-configured", environment=environment)
    scenario = Scenario(model_of("qwen3moe"))
    outcome = replay(scenario)
    replay.close()
    assert np.array_equal(stock(scenario).logits, outcome.logits)
    assert str(path) in replay.said("hotcache: ")
