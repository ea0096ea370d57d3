"""Why the cache won or lost, from what was measured; silent where the figures do not tell."""

from moetune.autotune.baselines import ALL_ON_DEVICE, BEST_OFFLOAD, CACHE_OFF, EXPERTS_IN_RAM, STOCK_CPU
from moetune.autotune.evaluate import fastest
from moetune.autotune.record import TrialRecord
from moetune.autotune.space import Space
from moetune.engine.measurement import Measurement

_MIB = 1 << 20
_LOW_HIT_RATE = 0.5
_NOTABLE_SHARE = 0.1
_NOTABLE_COST = 1.03


def reasons(space: Space, records: list[TrialRecord], best_baseline: str, cache_won: bool) -> tuple[str, ...]:
    """Facts to put after "because", most telling first."""
    if space.cache_idle is not None:
        return ()
    cached = fastest([r for r in records if r.config.has_slots])
    if cached is None or cached.measurement is None:
        failed = sum(r.config.has_slots for r in records)
        return (f"none of {failed} trials with the cache on ran",) if failed else ()
    facts = [_hit_fact(cached.measurement, cache_won)]
    if not cache_won:
        facts += [
            _overhead_fact(records),
            _wait_fact(cached.measurement),
            _traffic_fact(cached.measurement),
            _offload_fact(best_baseline, records),
            _cpu_fact(best_baseline, records),
        ]
    return tuple(fact for fact in facts if fact)


def _hit_fact(measured: Measurement, cache_won: bool) -> str:
    rate = measured.counters.hit_rate if measured.counters else None
    if rate is None:
        return ""
    if cache_won:
        return f"its slots served {rate:.0%} of the routed experts"
    return f"the best cache served only {rate:.0%} of the routed experts" if rate < _LOW_HIT_RATE else ""


def _overhead_fact(records: list[TrialRecord]) -> str:
    """What the plugin costs before it helps: cache off against stock at the same placement."""
    off = fastest([r for r in records if r.name == CACHE_OFF])
    # Without a device the CPU alone is that placement.
    on_device = any(r.name == EXPERTS_IN_RAM for r in records)
    stock = fastest([r for r in records if r.name == (EXPERTS_IN_RAM if on_device else STOCK_CPU)])
    if off is None or stock is None or off.turn_s is None or stock.turn_s is None:
        return ""
    ratio = off.turn_s / stock.turn_s
    if ratio < _NOTABLE_COST:
        return ""
    return f"with the cache off the plugin alone takes {ratio:.2f}× the turn time of {stock.name}"


def _wait_fact(measured: Measurement) -> str:
    share = measured.counters.wait_s / sum(measured.tg_samples_s) if measured.counters else 0.0
    return f"{share:.0%} of generation was one tier waiting for the other" if share > _NOTABLE_SHARE else ""


def _traffic_fact(measured: Measurement) -> str:
    if measured.counters is None or not measured.counters.bytes_moved:
        return ""
    each = measured.counters.bytes_moved / len(measured.tg_samples_s) / _MIB
    return (
        f"promotions moved {each:,.1f} MiB a token"
        if measured.counters.promotions >= len(measured.tg_samples_s)
        else ""
    )


def _offload_fact(best_baseline: str, records: list[TrialRecord]) -> str:
    best = fastest([r for r in records if r.name == best_baseline])
    ram = fastest([r for r in records if r.name == EXPERTS_IN_RAM])
    if best_baseline not in (BEST_OFFLOAD, ALL_ON_DEVICE) or best is None or ram is None:
        return ""
    if best.turn_s is None or ram.turn_s is None or ram.turn_s < best.turn_s * _NOTABLE_COST:
        return ""
    return f"the same memory filled with whole layers already gives {ram.turn_s / best.turn_s:.2f}×"


def _cpu_fact(best_baseline: str, records: list[TrialRecord]) -> str:
    """Where the device itself does not pay."""
    best = fastest([r for r in records if r.name == best_baseline and r.config.device is None])
    ram = fastest([r for r in records if r.name == EXPERTS_IN_RAM])
    if best is None or ram is None or best.turn_s is None or ram.turn_s is None:
        return ""
    if ram.turn_s < best.turn_s * _NOTABLE_COST:
        return ""
    return f"the CPU alone is {ram.turn_s / best.turn_s:.2f}× as fast as with the dense parts on the device"
