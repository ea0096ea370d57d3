"""Profiles on disk: found by their keys, replaced in one step, never lost."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import Profile, read_profile, to_yaml
from moetune.profiles.sharing import for_here, for_sharing
from moetune.profiles.store import ProfileStore, default_root, name_of, write_file

GOLDENS = Path(__file__).parent / "goldens"


def found(store: ProfileStore, profile: Profile) -> Profile | None:
    return store.find(
        profile.model_fingerprint,
        profile.machine_fingerprint,
        profile.engine_version,
        profile.n_ctx,
        profile.workload,
    )


def test_a_saved_profile_is_found_by_its_keys(store: ProfileStore, profile: Profile) -> None:
    """What was saved comes back equal, from a file whose name says workload and context."""
    path = store.save(profile)
    assert found(store, profile) == profile
    assert path.name.startswith("chat-ctx8192-")


@pytest.mark.parametrize(
    "change",
    [
        {"model_fingerprint": "another"},
        {"machine_fingerprint": "another"},
        {"engine_version": "another"},
        {"n_ctx": 4096},
        {"workload": "code"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_key_counts(store: ProfileStore, profile: Profile, change: dict[str, object]) -> None:
    """A profile is not found when one of its keys differs."""
    store.save(profile)
    assert found(store, replace(profile, **change)) is None  # type: ignore[arg-type]


def test_an_empty_store_finds_nothing(store: ProfileStore, profile: Profile) -> None:
    """A folder that does not exist yet is an empty store."""
    assert found(store, profile) is None
    assert store.list().profiles == ()


def test_saving_again_replaces_and_leaves_nothing_beside_it(store: ProfileStore, profile: Profile) -> None:
    """The newer profile of the same keys takes the place of the older; no temporary file stays."""
    path = store.save(profile)
    store.save(replace(profile, gain=1.5))
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert found(store, profile) == replace(profile, gain=1.5)


def test_a_model_is_never_written_over(tmp_path: Path) -> None:
    """Whatever else was there is."""
    model, notes = tmp_path / "model.gguf", tmp_path / "notes.txt"
    model.write_bytes(b"GGUF and much more")
    notes.write_bytes(b"old")
    with pytest.raises(MoetuneError, match="is a model") as refused:
        write_file(model, b"a command")
    assert refused.value.code is ExitCode.USAGE
    assert model.read_bytes() == b"GGUF and much more"
    write_file(notes, b"new")
    assert notes.read_bytes() == b"new"


def test_a_failed_write_keeps_the_old_profile(
    store: ProfileStore, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while writing loses nothing."""
    path = store.save(profile)

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(MoetuneError, match="No space left on device") as caught:
        store.save(replace(profile, gain=1.5))
    assert caught.value.code is ExitCode.STORAGE
    assert found(store, profile) == profile
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_candidates_are_this_model_on_this_machine_newest_first(
    store: ProfileStore, profile: Profile, other_context: Profile
) -> None:
    """Other contexts are candidates; other machines and models are not."""
    store.save(profile)
    store.save(other_context)
    store.save(replace(profile, machine_fingerprint="elsewhere"))
    store.save(replace(profile, model_fingerprint="another model"))
    shelf = store.candidates(profile.model_fingerprint, profile.machine_fingerprint)
    assert shelf.profiles == (other_context, profile)
    assert len(store.candidates(profile.model_fingerprint).profiles) == 3
    assert len(store.list().profiles) == 4


def test_one_damaged_file_does_not_hide_the_others(
    store: ProfileStore, profile: Profile, other_context: Profile
) -> None:
    """A listing keeps what can be read and says what cannot; asking for the damaged one fails."""
    damaged = store.save(profile)
    store.save(other_context)
    damaged.write_text("schema_version: 1\n")
    shelf = store.candidates(profile.model_fingerprint, profile.machine_fingerprint)
    assert shelf.profiles == (other_context,)
    assert str(damaged) in shelf.unusable[0].cause
    with pytest.raises(MoetuneError, match="not valid"):
        found(store, profile)


def test_a_profile_moved_from_another_machine_is_refused(store: ProfileStore, profile: Profile) -> None:
    """A file copied into this machine's folder by hand is not applied in silence."""
    foreign = store.save(replace(profile, machine_fingerprint="elsewhere"))
    here = store.path_of(profile)
    here.parent.mkdir(parents=True)
    here.write_bytes(foreign.read_bytes())
    with pytest.raises(MoetuneError, match="another model, machine") as caught:
        found(store, profile)
    assert caught.value.code is ExitCode.STORAGE


def test_keys_cannot_leave_the_store(store: ProfileStore, profile: Profile) -> None:
    """Fingerprints with slashes and dots stay inside the root and apart from each other."""
    first = store.save(replace(profile, model_fingerprint="../../a/b"))
    second = store.save(replace(profile, model_fingerprint="../../a:b"))
    assert store.root in first.resolve().parents
    assert first != second


def test_a_root_that_is_a_file_is_reported_before_and_while_saving(tmp_path: Path, profile: Profile) -> None:
    """An unwritable config folder is one clear error with the variable that moves it."""
    (tmp_path / "config").write_text("in the way")
    store = ProfileStore(tmp_path / "config" / "profiles")
    for attempt in (store.check_writable, lambda: store.save(profile)):
        with pytest.raises(MoetuneError, match="cannot be written") as caught:
            attempt()
        assert caught.value.code is ExitCode.STORAGE
        assert "MOETUNE_CONFIG_DIR" in caught.value.remedy


def test_the_environment_moves_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MOETUNE_CONFIG_DIR wins over the user's config folder."""
    monkeypatch.setenv("MOETUNE_CONFIG_DIR", str(tmp_path))
    assert ProfileStore().root == tmp_path / "profiles"
    monkeypatch.delenv("MOETUNE_CONFIG_DIR")
    assert default_root().parts[-2:] == ("moetune", "profiles")


@pytest.mark.parametrize("content", ["schema_version: 2\n", "{broken", ""])
def test_what_cannot_be_read_is_kept_when_its_place_is_taken(
    store: ProfileStore, profile: Profile, content: str
) -> None:
    """A profile of a newer moetune, or a damaged one, is never overwritten."""
    path = store.save(profile)
    for number in (1, 2):
        path.write_text(content)
        assert store.save(profile) == path
        assert path.with_name(f"{path.name}.kept-{number}").read_text() == content
    assert store.list().profiles == (profile,)


def test_a_profile_is_named_by_as_much_as_tells_it_apart(
    store: ProfileStore, profile: Profile, other_context: Profile
) -> None:
    """Nothing, nobody's name and what begins two names are refused."""
    store.save(profile)
    store.save(other_context)
    assert store.named(name_of(profile)[:6].upper()) == profile
    assert name_of(profile) in store.path_of(profile).name
    for wrong in ("", "nobody", "../chat"):
        with pytest.raises(MoetuneError, match="no profile") as caught:
            store.named(wrong)
        assert caught.value.code is ExitCode.USAGE
    for n in range(17):  # at least two of them share a first digit
        store.save(replace(profile, model_fingerprint=str(n)))
    shared = next(d for d in "0123456789abcdef" if sum(name_of(p)[0] == d for p in store.list().profiles) > 1)
    with pytest.raises(MoetuneError, match="begins the names"):
        store.named(shared)


def test_another_profile_with_the_same_keys_is_in_the_way(store: ProfileStore, profile: Profile) -> None:
    """The same one, and none at all, are not."""
    store.require_free(profile)
    store.save(profile)
    store.require_free(profile)
    with pytest.raises(MoetuneError, match=name_of(profile)[:8]) as caught:
        store.require_free(replace(profile, gain=2.0))
    assert caught.value.code is ExitCode.USAGE


def test_removing_takes_one_file(store: ProfileStore, profile: Profile, other_context: Profile) -> None:
    """And says so when it is not there."""
    store.save(profile)
    store.save(other_context)
    assert store.remove(profile) == store.path_of(profile)
    assert store.list().profiles == (other_context,)
    with pytest.raises(MoetuneError, match="cannot be deleted"):
        store.remove(profile)


def test_a_shared_profile_has_no_path_of_this_machine(store: ProfileStore) -> None:
    """Routing is found again where the profile is run, whatever path a file names."""
    mine = read_profile(GOLDENS / "profile-v3.yaml")
    assert mine.config.cache is not None
    assert mine.config.cache.routing is not None
    shared = for_sharing(replace(mine, baseline_config=mine.config))
    assert mine.config.cache.routing in to_yaml(mine)
    assert mine.config.cache.routing not in to_yaml(shared)
    here = for_here(shared, store)
    assert here.config.cache is not None
    assert here.config.cache.routing == str(store.routing_path(mine.model_fingerprint))
    assert here.baseline_config == here.config
    plain = replace(mine, config=replace(mine.config, cache=None))
    assert for_here(for_sharing(plain), store) == plain
