"""Which remembered profile applies here, and if none does, why not."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from shlex import quote

from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore, name_of

_MOST_REASONS = 3


@dataclass(frozen=True)
class Wanted:
    """What a profile must be for. n_ctx, workload: None takes any, the newest first."""

    model_fingerprint: str
    machine_fingerprint: str
    engine_version: str
    n_ctx: int | None
    workload: str | None

    def fits(self, profile: Profile) -> bool:
        """Whether the profile was measured on just this."""
        return (
            profile.model_fingerprint == self.model_fingerprint
            and profile.machine_fingerprint == self.machine_fingerprint
            and profile.engine_version == self.engine_version
            and self.n_ctx in (None, profile.n_ctx)
            and self.workload in (None, profile.workload)
        )


@dataclass(frozen=True)
class Choice:
    """The profile to apply, if there is one. remarks: what the user should know besides, a line each."""

    profile: Profile | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Here:
    """This machine, with the emulated accelerator of the moment if any, and this engine."""

    machine_fingerprint: str
    engine_version: str

    def why_not(self, profile: Profile) -> str | None:
        """Why the profile does not hold here; None where it does."""
        if profile.machine_fingerprint != self.machine_fingerprint:
            where = f"the emulated machine {profile.emulated!r}" if profile.emulated else profile.machine_label
            hint = f" (--emulate {quote(profile.emulated)} brings it back)" if profile.emulated else ""
            return f"made on another machine: {where}{hint}"
        if profile.engine_version != self.engine_version:
            return f"made with another engine: {profile.engine_version}"
        return None


def what_it_is(profile: Profile) -> tuple[str, str]:
    """A line that names it, and one that says what it promises; `moetune profiles show` has the whole verdict."""
    emulated = f", emulated machine {profile.emulated}" if profile.emulated else ""
    head = f"profile {name_of(profile)[:8]}: {profile.workload}, context {profile.n_ctx}, of {profile.created_at[:10]}"
    if profile.gain_low <= 1:
        return head + emulated, f"{profile.baseline_name}: nothing faster was proven"
    gain = f"{profile.gain:.2f}× as fast as {profile.baseline_name} ({profile.gain_low:.2f}–{profile.gain_high:.2f})"
    return head + emulated, gain


def choose(store: ProfileStore, wanted: Wanted) -> Choice:
    """The profile for exactly what is wanted; where that leaves a choice, the newest.

    Raises `MoetuneError` (STORAGE) when the profile that might apply is damaged or newer than this moetune.
    """
    if wanted.n_ctx is not None and wanted.workload is not None:
        profile = store.find(
            wanted.model_fingerprint,
            wanted.machine_fingerprint,
            wanted.engine_version,
            wanted.n_ctx,
            wanted.workload,
        )
        return Choice(profile, () if profile else _reasons(store, wanted))
    shelf = store.candidates(wanted.model_fingerprint, wanted.machine_fingerprint)
    fitting = [profile for profile in shelf.profiles if wanted.fits(profile)]
    if fitting:
        remarks = [f"warning: {error.cause}" for error in shelf.unusable]
        if len(fitting) > 1:
            remarks.append(f"{len(fitting)} profiles apply; this is the newest. --workload and --ctx choose another.")
        return Choice(fitting[0], tuple(remarks))
    if shelf.unusable:
        raise shelf.unusable[0]
    return Choice(None, _reasons(store, wanted))


def _reasons(store: ProfileStore, wanted: Wanted) -> tuple[str, ...]:
    return tuple(islice(_each_reason(store, wanted), _MOST_REASONS))


def _each_reason(store: ProfileStore, wanted: Wanted) -> Iterator[str]:
    """Why each profile there is for this model was not applied, newest first."""
    here = Here(wanted.machine_fingerprint, wanted.engine_version)
    for profile in store.candidates(wanted.model_fingerprint).profiles:
        reason = here.why_not(profile)
        name = f"the profile for {profile.workload} at a context of {profile.n_ctx}"
        yield f"not applied: {name}" + (f", {reason}" if reason else "")
