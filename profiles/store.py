"""Where profiles lie on disk: one YAML file each, found again by what they are valid for."""

import os
import re
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

from platformdirs import user_config_path

from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import Profile, read_profile, to_yaml

_GGUF = b"GGUF"
CONFIG_DIR_VARIABLE = "MOETUNE_CONFIG_DIR"


@dataclass(frozen=True)
class Shelf:
    """Profiles found, newest first, and for each file that could not be used, why."""

    profiles: tuple[Profile, ...]
    unusable: tuple[MoetuneError, ...]


def name_of(profile: Profile) -> str:
    """What tells it apart from every other: 12 hex digits of its keys."""
    return _digest(*_keys(profile))


def default_root() -> Path:
    """The profiles' folder: under `MOETUNE_CONFIG_DIR` when that is set, else under the user's config folder."""
    override = os.environ.get(CONFIG_DIR_VARIABLE)
    return (Path(override) if override else user_config_path("moetune")) / "profiles"


class ProfileStore:
    """Profiles under one folder: `root/<model>/<machine>/<workload>-ctx<n>-<hash of all keys>.yaml`.

    Every failure to read or write is a `MoetuneError` with `ExitCode.STORAGE`. Only `remove` deletes; a profile with
    the same keys replaces the older one in one step.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root

    def path_of(self, profile: Profile) -> Path:
        """The file this profile belongs in."""
        return self._path(*_keys(profile))

    def routing_path(self, model_fingerprint: str) -> Path:
        """The file that the recorded routing of this model belongs in, beside its profiles."""
        return self.root / _folder(model_fingerprint) / "routing.moetrace"

    def recorded_routing(self, model_fingerprint: str) -> Path | None:
        """That file if there is one."""
        path = self.routing_path(model_fingerprint)
        return path if self._exists(path) else None

    def check_writable(self) -> None:
        """Raise now what `save` would raise later, before hours are spent on a search."""
        check_writable(self.root)

    def save(self, profile: Profile) -> Path:
        """Write the profile atomically and durably; the path it has now. What cannot be read there is kept aside."""
        path = self.path_of(profile)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep_unreadable(path)
        except OSError as error:
            raise _unwritable(path.parent, error) from error
        write_file(path, to_yaml(profile).encode())
        return path

    def require_free(self, profile: Profile) -> None:
        """Raise MoetuneError (USAGE) where another profile has this one's keys."""
        there = self.find(*_keys(profile))
        if there is not None and there != profile:
            raise MoetuneError(
                f"There is another profile for the same model, machine, engine, context and workload: "
                f"{name_of(there)[:8]}, of {there.created_at[:10]}.",
                "Look at both (`moetune profiles diff`), then remove it, or import with --replace.",
                ExitCode.USAGE,
            )

    def named(self, prefix: str) -> Profile:
        """The one profile whose name begins so; MoetuneError (USAGE) when there is none or more than one."""
        names = {name_of(profile): profile for profile in self.list().profiles}
        found = sorted(name for name in names if prefix and name.startswith(prefix.lower()))
        if len(found) == 1:
            return names[found[0]]
        if not found:
            raise MoetuneError(
                f"There is no profile {prefix!r}.", "`moetune profiles list` names those there are.", ExitCode.USAGE
            )
        raise MoetuneError(
            f"{prefix!r} begins the names of {len(found)} profiles.",
            f"Write more of it: {', '.join(name[: len(prefix) + 4] for name in found[:4])}.",
            ExitCode.USAGE,
        )

    def remove(self, profile: Profile) -> Path:
        """Delete its file for good; the path it had."""
        path = self.path_of(profile)
        try:
            path.unlink()
        except OSError as error:
            raise MoetuneError(
                f"The profile {path} cannot be deleted: {error.strerror or error}.",
                "Check who may write to its folder; a file that was put there by hand is deleted by hand.",
                ExitCode.STORAGE,
            ) from error
        return path

    def find(
        self, model_fingerprint: str, machine_fingerprint: str, engine_version: str, n_ctx: int, workload: str
    ) -> Profile | None:
        """The profile for exactly these keys. A damaged or newer file raises; a file moved here from elsewhere too."""
        path = self._path(model_fingerprint, machine_fingerprint, engine_version, n_ctx, workload)
        if not self._exists(path):
            return None
        profile = read_profile(path)
        if self.path_of(profile) != path:
            raise MoetuneError(
                f"The profile {path} was made for another model, machine, engine version, context or workload.",
                "Move or delete that file and run the search again. It was left as it is.",
                ExitCode.STORAGE,
            )
        return profile

    def candidates(self, model_fingerprint: str, machine_fingerprint: str | None = None) -> Shelf:
        """Profiles of this model on this machine, or on any machine when None, whatever their other keys."""
        machine = "*" if machine_fingerprint is None else _folder(machine_fingerprint)
        return self._shelf(f"{_folder(model_fingerprint)}/{machine}/*.yaml")

    def list(self) -> Shelf:
        """Every profile in the store."""
        return self._shelf("*/*/*.yaml")

    def _path(self, model: str, machine: str, engine: str, n_ctx: int, workload: str) -> Path:
        name = f"{_plain(workload)}-ctx{n_ctx}-{_digest(model, machine, engine, n_ctx, workload)}.yaml"
        return self.root / _folder(model) / _folder(machine) / name

    def _exists(self, path: Path) -> bool:
        try:
            return path.is_file()
        except OSError as error:
            raise _unreadable(self.root, error) from error

    def _shelf(self, pattern: str) -> Shelf:
        try:
            paths = sorted(self.root.glob(pattern))
        except OSError as error:
            raise _unreadable(self.root, error) from error
        profiles: list[Profile] = []
        unusable: list[MoetuneError] = []
        for path in paths:
            try:
                profiles.append(read_profile(path))
            except MoetuneError as error:
                unusable.append(error)
        profiles.sort(key=lambda profile: profile.created_at, reverse=True)
        return Shelf(tuple(profiles), tuple(unusable))


def check_writable(folder: Path) -> None:
    """Make the folder if need be; raise MoetuneError (STORAGE) when files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_file(path: Path, content: bytes) -> None:
    """Write in one step and durably, over what was there; MoetuneError (STORAGE) when that cannot be.

    Never over a model: a slip of the hand must not cost tens of gigabytes (USAGE).
    """
    if _is_model(path):
        raise MoetuneError(f"{path} is a model and was not written over.", "Name another file.", ExitCode.USAGE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, content)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _is_model(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF)) == _GGUF
    except OSError:
        return False


def _keys(profile: Profile) -> tuple[str, str, str, int, str]:
    """What a profile is valid for, in the order of `find`."""
    return (
        profile.model_fingerprint,
        profile.machine_fingerprint,
        profile.engine_version,
        profile.n_ctx,
        profile.workload,
    )


def _digest(model: str, machine: str, engine: str, n_ctx: int, workload: str) -> str:
    return sha256("\0".join((model, machine, engine, str(n_ctx), workload)).encode()).hexdigest()[:12]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:40] or "_"


def _folder(fingerprint: str) -> str:
    """A readable folder name; the short hash keeps apart what `_plain` makes equal."""
    return f"{_plain(fingerprint)[:16]}-{sha256(fingerprint.encode()).hexdigest()[:8]}"


def _keep_unreadable(path: Path) -> None:
    """Move a damaged profile, or one of a newer moetune, aside before its place is taken."""
    if not path.exists():
        return
    try:
        read_profile(path)
    except MoetuneError:
        kept = next(p for n in count(1) if not (p := path.with_name(f"{path.name}.kept-{n}")).exists())
        path.rename(kept)


def _write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, also after a power cut: both the file and its folder are synced."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unwritable(folder: Path, error: OSError) -> MoetuneError:
    return MoetuneError(
        f"Files cannot be written to {folder}: {error.strerror or error}.",
        f"Make the folder writable, free space there, or choose another ({CONFIG_DIR_VARIABLE}, or --out of trace).",
        ExitCode.STORAGE,
    )


def _unreadable(folder: Path, error: OSError) -> MoetuneError:
    return MoetuneError(
        f"The profiles in {folder} cannot be read: {error.strerror or error}.",
        f"Make the folder readable, or set {CONFIG_DIR_VARIABLE} to one that is.",
        ExitCode.STORAGE,
    )
