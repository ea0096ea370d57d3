"""How a search ended, as data, and the one honest sentence that says it."""

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from moetune.autotune.evaluate import fastest, fastest_baseline
from moetune.autotune.quality import QualityReport
from moetune.autotune.race import Race, Run, Standing
from moetune.autotune.reasons import reasons
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.sequential import Interval
from moetune.autotune.space import Space
from moetune.autotune.words import describe
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Measurement
from moetune.profiles.schema import Figures


class VerdictKind(StrEnum):
    """What may be claimed. A win exists only after a race."""

    CACHE_WINS = "cache-wins"
    OTHER_SETTING_WINS = "other-setting-wins"
    NO_PROVEN_IMPROVEMENT = "no-proven-improvement"
    NO_BASELINE = "no-baseline"
    INTERRUPTED = "interrupted"
    NOTHING_RAN = "nothing-ran"


@dataclass(frozen=True)
class Verdict:
    """config: what to run from now on (the winner, else the best baseline); None when nothing may be said.

    result and baseline: figures of `config` and of the best baseline, from the race where there was one.
    rival, rival_figures: the candidate that came closest when none won. cache_idle: why the cache took no
    part, None where it did. emulated: the emulated device's description. quality: of `config`'s KV types,
    where they were asked for. baseline_config: of the best baseline.
    """

    kind: VerdictKind
    config: EngineConfig | None
    words: str
    result: Figures | None
    baseline: Figures | None
    baseline_name: str
    interval: Interval | None
    rival: EngineConfig | None
    rival_figures: Figures | None
    rival_gain: float | None
    reasons: tuple[str, ...]
    cache_idle: str | None
    emulated: str | None
    quality: QualityReport | None = None
    baseline_config: EngineConfig | None = None

    @property
    def proven(self) -> bool:
        """Whether something beat the best baseline."""
        return self.kind in (VerdictKind.CACHE_WINS, VerdictKind.OTHER_SETTING_WINS)

    @property
    def sentence(self) -> str:
        """The verdict for people; says "emulated" when any figure is."""
        text = _SENTENCES[self.kind](self)
        if self.quality is not None and self.quality.figures is not None:
            text += f" {self.quality.sentence}."
        if self.cache_idle:
            text += f" The cache took no part: {self.cache_idle}."
        return f"{text} (Emulated: {self.emulated}; no real device was measured.)" if self.emulated else text


def judge(space: Space, records: list[TrialRecord], race: Race | None, *, interrupted: bool) -> Verdict:
    """The verdict over everything measured."""
    emulated = space.tier.description if space.tier is not None and space.tier.emulated else None
    best = fastest(records)
    baseline = fastest_baseline(records)
    won, shown = (race.winner, race.closest) if race else (None, None)
    kind = _kind(won.config if won else None, best, baseline, interrupted)
    name = baseline.name if baseline is not None else ""
    config = won.config if won else baseline.config if baseline else None
    cache_won = kind is VerdictKind.CACHE_WINS
    base_figures = _race_figures(race, race.incumbent) if race and shown else _figures(baseline)
    shown_figures = _race_figures(race, shown.config) if race and shown else None
    return Verdict(
        kind=kind,
        config=config,
        words=describe(config, space.model.n_layers) if config else "",
        result=shown_figures if won else base_figures,
        baseline=base_figures,
        baseline_name=name,
        interval=shown.interval if shown else None,
        rival=shown.config if shown and not won else None,
        rival_figures=shown_figures if not won else None,
        rival_gain=_screening_gain(records, baseline),
        # Why the cache lost says nothing of another setting's win.
        reasons=()
        if kind is VerdictKind.OTHER_SETTING_WINS
        else (*_race_reasons(race), *reasons(space, records, name, cache_won)),
        cache_idle=space.cache_idle,
        emulated=emulated,
        baseline_config=baseline.config if baseline else None,
    )


def _kind(
    won: EngineConfig | None, best: TrialRecord | None, baseline: TrialRecord | None, interrupted: bool
) -> VerdictKind:
    if won is not None:
        return VerdictKind.CACHE_WINS if won.has_slots else VerdictKind.OTHER_SETTING_WINS
    if interrupted:
        return VerdictKind.INTERRUPTED
    if best is None:
        return VerdictKind.NOTHING_RAN
    return VerdictKind.NO_BASELINE if baseline is None else VerdictKind.NO_PROVEN_IMPROVEMENT


def _figures(record: TrialRecord | None) -> Figures | None:
    if record is None or record.measurement is None or record.turn_s is None:
        return None
    return figures_of([record.measurement], [record.turn_s])


def _race_figures(race: Race, config: EngineConfig) -> Figures:
    runs: list[Run] = race.runs_of(config)
    return figures_of([run.measurement for run in runs], [run.turn_s for run in runs])


def figures_of(measured: list[Measurement], turns_s: list[float]) -> Figures:
    """Medians over measurements of one configuration."""
    hit_rates = [m.counters.hit_rate for m in measured if m.counters is not None and m.counters.hit_rate is not None]
    return Figures(
        pp_tps=median(m.pp_tps for m in measured),
        tg_tps=median(m.tg_tps for m in measured),
        turn_s=median(turns_s),
        hit_rate=median(hit_rates) if hit_rates else None,
        fast_bytes=max(m.fast_bytes for m in measured),
    )


def _screening_gain(records: list[TrialRecord], baseline: TrialRecord | None) -> float | None:
    rival = fastest([record for record in records if record.origin is not Origin.BASELINE])
    if rival is None or baseline is None or rival.turn_s is None or baseline.turn_s is None:
        return None
    return baseline.turn_s / rival.turn_s


def _race_reasons(race: Race | None) -> tuple[str, ...]:
    """Why the race names nobody; candidates that failed or stall are named."""
    if race is None or race.winner is not None:
        return ()
    failed = [f"a candidate failed: {arm.detail}" for arm in race.arms if arm.standing is Standing.FAILED]
    stalls = [str(arm.standing) for arm in race.arms if arm.standing is Standing.STALLS]
    return (*dict.fromkeys([*failed, *stalls]), *([race.stopped] if race.stopped else []))


# A candidate that looks faster than this and is not proven needs a word on why it does not count.
_CLEAR_GAIN = 1.02
_UNCERTAIN = ", too uncertain to count"


def _because(verdict: Verdict) -> str:
    return f", because {'; '.join(verdict.reasons)}" if verdict.reasons else ""


def range_of(interval: Interval) -> str:
    """Its bounds; open above where the data give none."""
    high = "" if math.isinf(interval.high) else f"{interval.high:.2f}"
    return f"{interval.low:.2f}–{high}"


def _win(verdict: Verdict) -> str:
    if verdict.interval is None or verdict.result is None or verdict.baseline is None:
        raise ValueError("a win needs its race")
    return (
        f"The best configuration ({verdict.words}) is {verdict.interval.gain:.2f}× as fast as the best baseline "
        f"({verdict.baseline_name}): {seconds_instead_of(verdict.result.turn_s, verdict.baseline.turn_s)} "
        f"a turn, {percent_of(verdict.interval.confidence)} interval {range_of(verdict.interval)}{_because(verdict)}."
    )


def _no_win(verdict: Verdict) -> str:
    head = f"Nothing beat {verdict.baseline_name}"
    if verdict.interval is not None:
        head += f": the best candidate measured {verdict.interval.gain:.2f}× ({range_of(verdict.interval)})"
        head += _UNCERTAIN if verdict.interval.gain >= _CLEAR_GAIN else ""
    elif verdict.rival_gain is not None:
        head += f": the best other configuration measured {verdict.rival_gain:.2f}× in its trial"
    else:
        head += ": no other configuration was measured"
    return f"{head}{_because(verdict)}."


def _interrupted(verdict: Verdict) -> str:
    known = f"The best baseline so far is {verdict.baseline_name}" if verdict.baseline_name else "No baseline ran yet"
    return f"Interrupted, so nothing is proven. {known}; what was measured is kept; the same command goes on."


def _no_baseline(_: Verdict) -> str:
    return "No baseline ran, so nothing is compared and nothing claimed; the table says why each failed."


def _nothing_ran(_: Verdict) -> str:
    return "No configuration ran, the baselines included; the table says why each failed."


def percent_of(confidence: float) -> str:
    """For example "97.5 %"."""
    return f"{confidence * 100:.4g} %"


def seconds_instead_of(value: float, instead_of: float) -> str:
    """Both in the unit, and to the decimals, that suit the smaller."""
    if value < 1:
        return f"{value * 1000:,.0f} ms instead of {instead_of * 1000:,.0f} ms"
    return f"{value:.1f} s instead of {instead_of:.1f} s"


_SENTENCES = {
    VerdictKind.CACHE_WINS: _win,
    VerdictKind.OTHER_SETTING_WINS: _win,
    VerdictKind.NO_PROVEN_IMPROVEMENT: _no_win,
    VerdictKind.NO_BASELINE: _no_baseline,
    VerdictKind.INTERRUPTED: _interrupted,
    VerdictKind.NOTHING_RAN: _nothing_ran,
}
