"""`moetune profiles`: looked at, shared, measured again and removed; never applied or overwritten in silence."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_outcome import Command
from saved_profile import TUNED, profile_of

from moetune.autotune.verify import verify
from moetune.cli.machine import seen_machine
from moetune.engine.emulator import library_path
from moetune.engine.library import plugin_path
from moetune.errors import ExitCode
from moetune.hardware.conditions import Conditions
from moetune.profiles.schema import Profile, read_profile, to_data
from moetune.profiles.store import ProfileStore, name_of

needs_engine = pytest.mark.skipif(
    not (library_path().is_file() and plugin_path().is_file()), reason="the native libraries are not built"
)


@pytest.fixture
def saved(model_file: Path) -> Profile:
    profile = profile_of(model_file)
    ProfileStore().save(profile)
    return profile


@pytest.fixture
def foreign(saved: Profile) -> Profile:
    profile = replace(saved, machine_fingerprint="elsewhere", machine_label="the big one")
    ProfileStore().save(profile)
    return profile


@pytest.fixture
def keeps_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may run beside this one."""
    still = Conditions(0.0, 0.0, 0.0, 8, None, False, 0, 0, 1 << 34, 1 << 34, ())
    monkeypatch.setattr("moetune.cli.verify.verify", functools.partial(verify, conditions=lambda: still))


def test_the_list_says_which_hold_here(command: Command, saved: Profile, foreign: Profile, model_file: Path) -> None:
    """In 80 columns, and for programs with the reason; a damaged file is named and hides nothing."""
    damaged = ProfileStore().path_of(saved).with_name("bad.yaml")
    damaged.write_text("schema_version: 3\n")
    listed = command("profiles", "list")
    assert listed.code == ExitCode.OK
    assert str(damaged) in listed.err
    rows = {line.split()[0]: line.split()[-1] for line in listed.out.splitlines() if line[:8].strip()}
    assert (rows[name_of(saved)[:8]], rows[name_of(foreign)[:8]]) == ("yes", "no")
    assert max(map(len, listed.out.splitlines())) <= 80
    data = json.loads(command("profiles", "list", "--format", "json").out)
    assert {entry["name"]: entry["why_not"] for entry in data} == {
        name_of(saved): None,
        name_of(foreign): "made on another machine: the big one",
    }
    only = yaml.safe_load(command("profiles", "list", "--model", str(model_file), "--format", "yaml").out)
    assert len(only) == 2


def test_an_empty_store_says_how_to_fill_it(command: Command) -> None:
    """And an empty list stays one for programs."""
    assert "moetune search" in command("profiles", "list").err
    assert json.loads(command("profiles", "list", "--format", "json").out) == []


def test_show_tells_what_matters(command: Command, saved: Profile, foreign: Profile) -> None:
    """Verdict, both sides, unusual settings, and that it is another machine's; all of it for programs."""
    shown = command("profiles", "show", name_of(foreign)[:8]).out
    flat = " ".join(shown.split())
    assert saved.verdict.sentence in flat
    assert "no: made on another machine: the big one" in flat
    assert "cache.slots 3" in flat
    assert "cache.hysteresis" not in flat
    assert "stock, best layer offload" in flat
    assert max(map(len, shown.splitlines())) <= 80
    data = json.loads(command("profiles", "show", name_of(saved), "--format", "json").out)
    assert (data["holds_here"], data["config"]) == (True, to_data(saved)["config"])


def test_diff_names_what_differs(command: Command, saved: Profile, foreign: Profile, tmp_path: Path) -> None:
    """Fields by their path; a file can be one side; equal is said."""
    differing = json.loads(command("profiles", "diff", name_of(saved), name_of(foreign), "--format", "json").out)
    assert differing["machine_label"] == [saved.machine_label, "the big one"]
    assert differing.keys() == {"machine_label", "machine_fingerprint"}
    file = tmp_path / "other.yaml"
    changed = replace(saved, config=replace(TUNED, cache=None))
    file.write_text(yaml.safe_dump(to_data(changed)))
    table = command("profiles", "diff", name_of(saved)[:8], str(file)).out
    assert "config.cache.slots" in table
    assert max(map(len, table.splitlines())) <= 80
    same = command("profiles", "diff", name_of(saved), name_of(saved))
    assert (same.out, "equal" in same.err) == ("", True)


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_profile_travels_to_another_machine(
    command: Command, saved: Profile, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported, imported into another store, the same there; what `import` thinks of its machine is said."""
    file = tmp_path / "shared"
    file.write_text(command("profiles", "export", name_of(saved), "--format", form).out)
    command("profiles", "export", name_of(saved), "--out", str(tmp_path / "again"))
    assert read_profile(tmp_path / "again") == read_profile(file) == saved
    monkeypatch.setenv("MOETUNE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(
        "moetune.cli.profiles.seen_machine",
        lambda *_: replace(seen_machine(None, None), memory=replace(seen_machine(None, None).memory, total_bytes=1)),
    )
    done = command("profiles", "import", str(file))
    assert (done.code, done.out) == (ExitCode.OK, "")
    assert "made on another machine" in done.err
    assert f"moetune profiles verify {name_of(saved)[:8]} MODEL --save" in done.err
    assert ProfileStore().list().profiles == (saved,)


def test_import_takes_nobodys_place_unless_told(command: Command, saved: Profile, tmp_path: Path) -> None:
    """The same one again is no conflict."""
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(to_data(saved)))
    assert command("profiles", "import", str(file)).code == ExitCode.OK
    file.write_text(yaml.safe_dump(to_data(replace(saved, gain=3.0, gain_high=4.0))))
    command("profiles", "import", str(file)).complains(ExitCode.USAGE, name_of(saved)[:8], "--replace", "diff")
    assert ProfileStore().list().profiles == (saved,)
    assert command("profiles", "import", str(file), "--replace").code == ExitCode.OK
    assert [profile.gain for profile in ProfileStore().list().profiles] == [3.0]


def test_an_imported_profile_reads_no_file_of_its_own_choice(command: Command, saved: Profile, tmp_path: Path) -> None:
    """Recorded routing is this machine's own; where there is none yet, that is said."""
    assert saved.config.cache is not None
    wanted = replace(saved, config=replace(TUNED, cache=replace(saved.config.cache, routing="/etc/passwd")))
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(to_data(wanted)))
    done = command("profiles", "import", str(file), "--replace")
    assert "moetune trace" in done.err
    (found,) = ProfileStore().list().profiles
    assert found.config.cache is not None
    assert found.config.cache.routing == str(ProfileStore().routing_path(saved.model_fingerprint))


@pytest.mark.parametrize(
    "content", [b"", b"- 1\n", b"a: &x 1\nb: *x\n", b"x: " + b"y" * (300 << 10), b"schema_version: 99\n", b"\xff"]
)
def test_a_file_that_is_no_profile_is_refused(command: Command, content: bytes, tmp_path: Path) -> None:
    """With its path, and nothing is kept."""
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    command("profiles", "import", str(file)).complains(ExitCode.STORAGE, str(file))
    assert ProfileStore().list().profiles == ()


def test_removing_asks_first(command: Command, saved: Profile) -> None:
    """Nobody to ask is no yes; the study it came from is not touched."""
    name = name_of(saved)[:8]
    command("profiles", "remove", name, piped=b"").complains(ExitCode.USAGE, "--yes")
    assert "Kept" in command("profiles", "remove", name).err
    assert ProfileStore().list().profiles == (saved,)
    assert command("profiles", "remove", name, "--yes").code == ExitCode.OK
    assert ProfileStore().list().profiles == ()
    assert not ProfileStore().path_of(saved).exists()


@pytest.mark.parametrize("arguments", [["show"], ["export"], ["remove"], ["diff", "1"], ["verify"]])
def test_a_profile_that_is_not_there(command: Command, model_file: Path, arguments: list[str]) -> None:
    """The error says where to look."""
    model = [str(model_file)] if arguments == ["verify"] else []
    done = command("profiles", arguments[0], "nobody", *arguments[1:], *model)
    done.complains(ExitCode.USAGE, "nobody", "moetune profiles list")


@needs_engine
@pytest.mark.usefixtures("keeps_still")
def test_verify_measures_on_the_real_engine(
    command: Command, model_file: Path, mine: str, saved: Profile, foreign: Profile
) -> None:
    """Slots on the CPU's own memory cannot gain on it: the profile is not proven, and nothing is saved for it."""
    workload = read_profile(ProfileStore().path_of(saved))
    for kept in (saved, foreign):
        ProfileStore().remove(kept)
    ProfileStore().save(replace(workload, workload="mine", machine_fingerprint="elsewhere"))
    (name,) = (name_of(profile) for profile in ProfileStore().list().profiles)
    arguments = ["profiles", "verify", name, str(model_file), "--workload", mine, "--rounds", "3", "--save"]
    done = command(*arguments, "--format", "json")
    assert done.code in (ExitCode.OK, ExitCode.UNPROVEN), done.err
    data = json.loads(done.out)
    assert (data["holding"] == "holds") == (done.code == ExitCode.OK)
    assert data["rounds"] == 3
    assert data["result"]["turn_s"] > 0
    assert data["baseline"]["turn_s"] > 0
    assert "made on another machine" in done.err
    assert len(ProfileStore().list().profiles) == 1 + (done.code == ExitCode.OK)


@needs_engine
@pytest.mark.usefixtures("keeps_still")
def test_a_profile_that_is_its_own_baseline_is_only_timed(
    command: Command, model_file: Path, mine: str, saved: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its emulated machine, which comes back by itself."""
    # The device would stay in this process; the worker has it all the same.
    monkeypatch.setattr("moetune.cli.verify.seen_machine", lambda model, _: seen_machine(model, None))
    stock = replace(TUNED, cache=None, device=None)
    profile = replace(saved, workload="mine", emulated="desktop,vram_mib=8", config=stock, baseline_config=stock)
    ProfileStore().save(profile)
    done = command("profiles", "verify", name_of(profile), str(model_file), "--workload", mine)
    assert done.code == ExitCode.OK, done.err
    assert "no gain to prove" in " ".join(done.out.split())
    assert "Emulated" in done.out


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({"baseline_config": None}, [], "older moetune"),
        ({"workload": "mine"}, [], "--workload FILE"),
        ({"workload": "code"}, ["--workload", "chat"], "'code'"),
        ({}, ["--rounds", "2"], "--rounds"),
        ({"model_fingerprint": "other"}, [], "another model"),
    ],
    ids=["old", "own workload", "other workload", "few rounds", "other model"],
)
def test_what_cannot_be_verified_is_said_first(
    command: Command, model_file: Path, saved: Profile, change: dict[str, object], arguments: list[str], said: str
) -> None:
    """Before anything is measured."""
    changed = replace(saved, **change)  # type: ignore[arg-type]
    ProfileStore().save(changed)
    command("profiles", "verify", name_of(changed), str(model_file), *arguments).complains(ExitCode.USAGE, said)


def test_a_device_that_is_gone_is_no_measurement(command: Command, model_file: Path, saved: Profile) -> None:
    """The same words as `run`'s."""
    ProfileStore().save(replace(saved, config=replace(TUNED, device="CUDA7")))
    done = command("profiles", "verify", name_of(saved), str(model_file))
    done.complains(ExitCode.DEVICE, "CUDA7")


def test_saving_over_another_profile_is_refused_before_measuring(
    command: Command, model_file: Path, saved: Profile, foreign: Profile
) -> None:
    """This machine has one of its own for the same things."""
    done = command("profiles", "verify", name_of(foreign), str(model_file), "--save")
    assert done.code == ExitCode.USAGE
    assert name_of(saved)[:8] in done.err
