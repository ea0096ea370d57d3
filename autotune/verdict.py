"""How a search ended, as data, and the one honest sentence that says it."""

from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from moetune.autotune.duel import Duel, Interval
from moetune.autotune.evaluate import fastest
from moetune.autotune.quality import QualityReport
from moetune.autotune.reasons import reasons
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.space import Space
from moetune.autotune.words import describe
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Measurement
from moetune.profiles.schema import Figures


class VerdictKind(StrEnum):
    """What may be claimed. A win exists only after a side-by-side."""

    CACHE_WINS = "cache-wins"
    OTHER_SETTING_WINS = "other-setting-wins"
    NO_PROVEN_IMPROVEMENT = "no-proven-improvement"
    NO_BASELINE = "no-baseline"
    INTERRUPTED = "interrupted"
    NOTHING_RAN = "nothing-ran"


@dataclass(frozen=True)
class Verdict:
    """config: what to run from now on (the winner, else the best baseline); None when nothing may be said.

    result and baseline: figures of `config` and of the best baseline, from the side-by-side where there was one.
    rival, rival_figures: the best candidate when it did not win its side-by-side. cache_idle: why the cache took no
    part, None where it did. emulated: the emulated device's description. quality: of `config`'s KV types,
    where they were asked for.
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


def judge(space: Space, records: list[TrialRecord], duels: tuple[Duel, ...], *, interrupted: bool) -> Verdict:
    """The verdict over everything measured."""
    emulated = space.tier.description if space.tier is not None and space.tier.emulated else None
    best = fastest(records)
    baseline = fastest([record for record in records if record.origin is Origin.BASELINE])
    won = next((duel for duel in duels if duel.won), None)
    fought = [duel for duel in duels if duel.interval is not None]
    shown = won or max(fought, key=lambda d: d.interval.gain if d.interval else 0.0, default=None)
    kind = _kind(won, best, baseline, interrupted)
    name = baseline.name if baseline is not None else ""
    config = won.candidate if won else baseline.config if baseline else None
    cache_won = kind is VerdictKind.CACHE_WINS
    base_figures = _duel_figures(shown, candidate=False) if shown else _figures(baseline)
    return Verdict(
        kind=kind,
        config=config,
        words=describe(config, space.model.n_layers) if config else "",
        result=_duel_figures(won, candidate=True) if won else base_figures,
        baseline=base_figures,
        baseline_name=name,
        interval=shown.interval if shown else None,
        rival=shown.candidate if shown and not won else None,
        rival_figures=_duel_figures(shown, candidate=True) if shown and not won else None,
        rival_gain=_screening_gain(records, baseline),
        reasons=(*_duel_failures(duels), *reasons(space, records, name, cache_won)),
        cache_idle=space.cache_idle,
        emulated=emulated,
    )


def _kind(won: Duel | None, best: TrialRecord | None, baseline: TrialRecord | None, interrupted: bool) -> VerdictKind:
    if won is not None:
        cache = won.candidate.cache
        return VerdictKind.CACHE_WINS if cache is not None and cache.slots else VerdictKind.OTHER_SETTING_WINS
    if interrupted:
        return VerdictKind.INTERRUPTED
    if best is None:
        return VerdictKind.NOTHING_RAN
    return VerdictKind.NO_BASELINE if baseline is None else VerdictKind.NO_PROVEN_IMPROVEMENT


def _figures(record: TrialRecord | None) -> Figures | None:
    if record is None or record.measurement is None or record.turn_s is None:
        return None
    return figures_of([record.measurement], [record.turn_s])


def _duel_figures(duel: Duel, *, candidate: bool) -> Figures:
    measured = [block.candidate if candidate else block.baseline for block in duel.blocks]
    return figures_of(measured, [b.candidate_turn_s if candidate else b.baseline_turn_s for b in duel.blocks])


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


def _duel_failures(duels: tuple[Duel, ...]) -> tuple[str, ...]:
    return tuple(duel.failure for duel in duels if duel.failure)


# A candidate that looks faster than this and is not proven needs a word on why it does not count.
_CLEAR_GAIN = 1.02
_UNCERTAIN = ", too uncertain to count"


def _because(verdict: Verdict) -> str:
    return f", because {'; '.join(verdict.reasons)}" if verdict.reasons else ""


def _range(interval: Interval) -> str:
    return f"{interval.low:.2f}–{interval.high:.2f}"


def _win(verdict: Verdict) -> str:
    if verdict.interval is None or verdict.result is None or verdict.baseline is None:
        raise ValueError("a win needs its side-by-side")
    return (
        f"The best configuration ({verdict.words}) is {verdict.interval.gain:.2f}× as fast as the best baseline "
        f"({verdict.baseline_name}): {_seconds(verdict.result.turn_s, verdict.baseline.turn_s)} "
        f"a turn, {_percent(verdict.interval.confidence)} interval {_range(verdict.interval)}{_because(verdict)}."
    )


def _no_win(verdict: Verdict) -> str:
    head = f"Nothing beat {verdict.baseline_name}"
    if verdict.interval is not None:
        head += f": the best candidate measured {verdict.interval.gain:.2f}× ({_range(verdict.interval)})"
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


def _percent(confidence: float) -> str:
    return f"{confidence * 100:.4g} %"


def _seconds(value: float, instead_of: float) -> str:
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
