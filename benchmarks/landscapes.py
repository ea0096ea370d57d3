"""Landscapes: everything a search could have measured on one model and one emulated machine, recorded once.

`landscapes.py` measures every configuration of a reduced search space in several fresh processes, those that come close
to the fastest in more of them, and keeps the raw samples, compressed; `search.py` replays them. The engine, the models'
routing and the throttles are real; the machines are emulated, and every figure made from these says so.
"""

import argparse
import gzip
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from moetune.autotune.baselines import fixed_baselines
from moetune.autotune.cost_hits import HitCurve, curve_from_routing
from moetune.autotune.knobs import Choice
from moetune.autotune.memory import MemoryModel, memory_of
from moetune.autotune.quality import QualityFigures, QualityReport, judge_quality
from moetune.autotune.quality_text import quality_text
from moetune.autotune.race import Rules
from moetune.autotune.request import SearchRequest
from moetune.autotune.space import Space, build_space
from moetune.autotune.trace import build_trace, shape_for
from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.divergence import summarize
from moetune.engine.emulator import parse_emulated
from moetune.engine.measurement import Failed, FailureReason, Measurement, Trace
from moetune.engine.model import Model, read_model
from moetune.engine.passage import Passage, TokenScores
from moetune.engine.routing_pass import WorkloadTokens
from moetune.engine.routing_pass import record as record_routing
from moetune.engine.runner import EngineRunner, register_emulated
from moetune.hardware.machine import Machine
from moetune.hardware.probe import measure_machine, read_machine
from moetune.profiles.workload import Workload

FOLDER = Path(__file__).parent / "results" / "landscapes"
STARTS = 5
# More of those whose order five starts cannot tell: so many each, and so many in all where they are few.
MORE_STARTS = 40
_MORE_IN_ALL = 120
_CLOSE = 1.08
_MOST_CLOSE = 16
_LESSONS = 3
_SLOT_STEP = 2
DEVICE = "EMU0"
WORKLOAD = Workload(
    name="replay",
    description="A short request",
    depth_tokens=0,
    prompt_tokens=24,
    reply_tokens=64,
    texts=(
        "The cache keeps the hottest experts in fast memory, and the rest stays where it was loaded. " * 3,
        "def read_lines(path):\n    with open(path) as file:\n        return [line.rstrip() for line in file]\n" * 3,
    ),
    sample_prompt="Hello",
)
N_CTX = 128
FLOOR = "floor"
KV_TYPES = (KvType.F16, KvType.Q4_0)


@dataclass(frozen=True)
class Landscape:
    """One model, one emulated machine, and the part of the search space that is recorded."""

    name: str
    why: str
    spec: SyntheticSpec
    emulated: str
    choices: Mapping[str, tuple[Choice, ...]]

    def request(self, state_dir: Path, **changes: object) -> SearchRequest:
        """A search of exactly this space."""
        base = SearchRequest(WORKLOAD, N_CTX, state_dir, "recorded", device=DEVICE, kv_types=KV_TYPES, passes=1)
        return replace(base, choices=tuple(self.choices.items()), **changes)  # type: ignore[arg-type]


# What is left out changes nothing on these machines, or is a matter of memory alone.
_CHOICES: Mapping[str, tuple[Choice, ...]] = {
    "n_threads": (1,),
    "n_threads_batch": (1,),
    "n_ubatch": (64,),
    "type_k": ("f16", "q4_0"),
    "type_v": ("f16",),
    "load_mode": ("mmap",),
    "flash_attn": ("auto",),
    "reserve": (1.0,),
    "prefill": ("auto",),
    "ahead": ("auto",),
    "interval_tokens": (1, 8),
    "hysteresis": (1.25,),
    "promotions": (1, 4),
    "policy": ("heat", "lru"),
}
_SPEC = SyntheticSpec(layers=4, experts=64, used=4, embd=256, ff=96, quant="Q4_0", skew=2.1, loudness=8.0)
_SMALL = "vram_mib={mib},scale={scale},launch_us=1,link_latency_us=2"
LANDSCAPES = (
    Landscape(
        "desktop",
        "skewed routing on a fast card beside slow RAM: the cache wins",
        _SPEC,
        "desktop," + _SMALL.format(mib=8, scale=0.005),
        _CHOICES,
    ),
    Landscape(
        "flat",
        "routing without favourites, on a card that holds half of the layers whole: the cache gains next to nothing",
        replace(_SPEC, skew=0.3, drift=0.5),
        "desktop," + _SMALL.format(mib=10, scale=0.005),
        {**_CHOICES, "promotions": (4,)},
    ),
    Landscape(
        "server",
        "eight memory channels: everything the card does costs more than it saves, and the cache loses",
        replace(_SPEC, layers=5, experts=32, skew=0.9, drift=0.5),
        "server," + _SMALL.format(mib=8, scale=0.005) + ",device_gbps=1008",
        _CHOICES,
    ),
    Landscape(
        "cliff",
        "a card on which little is left beside the dense parts: the best points lie next to those that do not fit",
        replace(_SPEC, skew=1.4, drift=0.2),
        # Twice as fast as the others, of which nothing but the time that recording takes depends.
        "desktop," + _SMALL.format(mib=7, scale=0.01) + ",link_gbps=12",
        {**_CHOICES, "n_ubatch": (64, 128)},
    ),
)


@dataclass(frozen=True)
class Recorded:
    """Raw samples of one configuration. One entry a process start; None where it did not run."""

    config: EngineConfig
    starts: tuple[Measurement | Failed, ...]

    @cached_property
    def true_turn_s(self) -> float:
        """What no single search knows: over all starts and samples. Infinite where it does not run."""
        turns = [turn_s(start) for start in self.starts if isinstance(start, Measurement)]
        return median(turns) if len(turns) == len(self.starts) else math.inf

    @cached_property
    def slow_token_s(self) -> float:
        """What nine of ten tokens take at most, the median of all starts."""
        return median(start.slow_token_s for start in self.starts if isinstance(start, Measurement))


@dataclass(frozen=True)
class Recording:
    """A landscape with all its measurements."""

    name: str
    emulated: str
    model: Model
    machine: Machine
    trace: Trace
    choices: tuple[tuple[str, tuple[Choice, ...]], ...]
    points: tuple[Recorded, ...]
    scores: Mapping[str, TokenScores]
    hits: HitCurve

    @cached_property
    def by_config(self) -> dict[EngineConfig, Recorded]:
        return {point.config: point for point in self.points}

    @cached_property
    def _alike(self) -> Mapping[EngineConfig, list[Recorded]]:
        found: dict[EngineConfig, list[Recorded]] = {}
        for point in self.points:
            found.setdefault(_but_for_slots(point.config), []).append(point)
        return found

    @cached_property
    def loads_s(self) -> Mapping[tuple[object, ...], list[float]]:
        """By placement, every recorded load."""
        found: dict[tuple[object, ...], list[float]] = {}
        for point in self.points:
            ran = (start for start in point.starts if isinstance(start, Measurement) and start.load_s > 0)
            found.setdefault(point.config.placement, []).extend(start.load_s for start in ran)
        return found

    def nearest(self, config: EngineConfig) -> Recorded:
        """Memory predictions learn, so a share of the free memory is not always the recorded number of slots."""
        exact = self.by_config.get(config)
        if exact is not None or config.cache is None:
            return exact or self.by_config[config]
        slots = config.cache.slots
        return min(
            self._alike[_but_for_slots(config)],
            key=lambda point: abs((point.config.cache.slots if point.config.cache else 0) - slots),
        )

    @cached_property
    def optimum(self) -> Recorded:
        """The fastest configuration whose KV types are near-lossless."""
        return min((p for p in self.points if self.admits(p.config)), key=lambda point: point.true_turn_s)

    @cached_property
    def promotable(self) -> Recorded:
        """The fastest of these that a race may name: its slow tokens are no slower than those of the fastest stock."""
        runs = [p for p in self.points if self.admits(p.config) and math.isfinite(p.true_turn_s)]
        stock = min((p for p in runs if not p.config.has_slots), key=lambda point: point.true_turn_s)
        bar_s = (1 + Rules().margin) * stock.slow_token_s
        return min((p for p in runs if p.slow_token_s <= bar_s), key=lambda point: point.true_turn_s)

    def admits(self, config: EngineConfig) -> bool:
        """Whether the recorded scores of its KV types are inside the default level."""
        return self._reports[config.type_k].passed

    @cached_property
    def _reports(self) -> Mapping[KvType, QualityReport]:
        figures = {name: QualityFigures(summarize(scores), None) for name, scores in self.scores.items()}
        level = SearchRequest.quality
        return {k: judge_quality(k, KvType.F16, figures[k], figures[FLOOR], level) for k in KV_TYPES}


RECORDING = TypeAdapter(Recording)


def turn_s(measured: Measurement) -> float:
    """Seconds for the recorded request."""
    return measured.turn_s(WORKLOAD.prompt_tokens, WORKLOAD.reply_tokens)


def read(name: str) -> Recording:
    """A recording from the repository."""
    return RECORDING.validate_json(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def every_config(space: Space, memory: MemoryModel) -> list[EngineConfig]:
    """All configurations of the space and the baselines, each once; those of one placement together.

    Of numbers of slots every second one that fits, and the largest: a search comes to whatever its memory allows.
    """
    ends = {knob.name: knob.choices if knob.name != "slots_percent" else knob.choices[-1:] for knob in space.knobs}
    points = product(*ends.values())
    encoded = ({k.name: k.encode(v) for k, v in zip(space.knobs, values, strict=True)} for values in points)
    full = (space.config_of(params, memory) for params in encoded)
    baselines = [baseline.config for baseline in fixed_baselines(space)]
    configs = dict.fromkeys([*(config for most in full for config in _with_fewer_slots(most)), *baselines])
    return sorted(configs, key=lambda config: repr(config.placement))


def _with_fewer_slots(config: EngineConfig) -> Iterator[EngineConfig]:
    yield config
    if config.cache is not None:
        yield replace(config, cache=CacheKnobs(slots=0))
        for slots in range(_SLOT_STEP, config.cache.slots, _SLOT_STEP):
            yield replace(config, cache=replace(config.cache, slots=slots))


@dataclass
class Replay:
    """A `Runner` that answers from a recording, with bootstrapped noise. Counts trials' and loads' seconds.

    A recorded request takes a tenth of a second, on which this computer scatters by 4 to 8 %; requests worth tuning for
    take seconds, and scatter by 1 %. So one replayed measurement stands for five requests: as many of the recorded
    starts are drawn with replacement, the one in the middle answers, and all of their time is counted.
    """

    recording: Recording
    seed: int
    engine_s: float = 0.0
    out_of_memory: int = 0
    measured: list[EngineConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._placement: tuple[object, ...] | None = None

    def close(self) -> None:
        """The next measurement needs a process of its own."""
        self._placement = None

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Only the number matters here: every answer is recorded."""
        return tuple(text.encode())

    def measure(self, config: EngineConfig, trace: Trace, *, passes: int, time_limit_s: float) -> Measurement | Failed:
        """What the engine did with this configuration, or with the recorded one nearest in slots."""
        point = self.point_of(config)
        self.measured.append(point.config)
        load_s = self._load(config)
        drawn = self._random.choices(point.starts, k=STARTS)
        failed = next((start for start in drawn if isinstance(start, Failed)), None)
        if failed is not None:
            self.out_of_memory += failed.reason is FailureReason.OUT_OF_MEMORY
            self.close()
            return failed
        ran = sorted((start for start in drawn if isinstance(start, Measurement)), key=turn_s)
        # One prompt pass goes untimed, as in the engine.
        self.engine_s += sum(
            sum(start.tg_samples_s) + sum(start.warmup_samples_s) + 2 * sum(start.pp_samples_s) for start in ran
        )
        return self._with_slots_of(config, point, replace(ran[len(ran) // 2], load_s=load_s))

    def _with_slots_of(self, config: EngineConfig, point: Recorded, measured: Measurement) -> Measurement:
        """Speed is that of the nearest number of slots; memory is known for every one of them."""
        if config.cache is None or point.config.cache is None:
            return measured
        more = config.cache.slots - point.config.cache.slots
        layers = (layer for layer in self.recording.model.layers if layer.index < config.ram_expert_layers)
        more_bytes = more * sum(layer.expert_bytes for layer in layers)
        return replace(measured, slots=measured.slots + more, fast_bytes=measured.fast_bytes + more_bytes)

    def score(
        self, base: EngineConfig, others: tuple[EngineConfig, ...], passage: Passage, *, time_limit_s: float
    ) -> tuple[TokenScores, ...]:
        """Recorded once, since these do not vary: for a type of K, and for f16 with another micro-batch."""
        kinds = (FLOOR if other.n_ubatch != base.n_ubatch else other.type_k for other in others)
        return tuple(self.recording.scores[kind] for kind in kinds)

    def point_of(self, config: EngineConfig) -> Recorded:
        """What answers for this configuration."""
        return self.recording.nearest(config)

    def _load(self, config: EngineConfig) -> float:
        if config.placement == self._placement:
            return 0.0
        self._placement = config.placement
        loads = self.recording.loads_s.get(config.placement)
        load_s = self._random.choice(loads) if loads else 0.0
        self.engine_s += load_s
        return load_s


def _but_for_slots(config: EngineConfig) -> EngineConfig:
    if config.cache is None or config.cache.slots == 0:
        return config
    return replace(config, cache=replace(config.cache, slots=1))


def record(landscape: Landscape, folder: Path, starts: int) -> Recording:
    """Measure every configuration in `starts` fresh processes each; within a process in random order."""
    path = folder / f"{landscape.name}.gguf"
    write_synthetic(path, landscape.spec)
    model, emulated = read_model(path), parse_emulated(landscape.emulated)
    register_emulated(emulated)
    machine = measure_machine(read_machine(path), path)
    request = landscape.request(folder)
    memory = memory_of(model, machine, DEVICE)
    space = build_space(model, machine.cpu, memory, request)
    points: dict[EngineConfig, Recorded] = {}
    with EngineRunner(path, emulated) as runner:
        trace = build_trace(WORKLOAD, shape_for(WORKLOAD, N_CTX), N_CTX, runner)
        # What trials teach of memory makes room for more slots, and other slots of the same shares of it.
        for _ in range(_LESSONS):
            new = [config for config in every_config(space, memory) if config not in points]
            print(f"{landscape.name}: {len(new)} configurations, {starts} starts", flush=True)
            points |= _measured(new, trace, starts, runner)
            memory = _taught(memory, points.values())
        passage = quality_text(None, WORKLOAD, N_CTX, model.n_vocab, runner).in_chunks
        scores = _scores(space.default, passage, runner)
    anonymous = replace(model, paths=(Path(path.name),))
    return Recording(
        name=landscape.name,
        emulated=landscape.emulated,
        model=anonymous,
        machine=machine,
        trace=trace,
        choices=request.choices,
        points=tuple(points.values()),
        scores=scores,
        hits=_hits(model, path),
    )


def refine(recording: Recording, spec: SyntheticSpec, folder: Path, starts: int) -> Recording:
    """With so many more starts of every configuration that comes close to the fastest one, if it has not had them yet;
    again until the fastest is one of these.
    """
    path = folder / f"{recording.name}.gguf"
    write_synthetic(path, spec)
    if read_model(path).fingerprint != recording.model.fingerprint:
        raise RuntimeError(f"{recording.name} was recorded with another model: record it again")
    while True:
        limit_s = _CLOSE * recording.optimum.true_turn_s
        close = sorted((p for p in recording.points if p.true_turn_s <= limit_s), key=lambda point: point.true_turn_s)
        wanted = STARTS + max(starts, _MORE_IN_ALL // len(close))
        close = [point for point in close[:_MOST_CLOSE] if len(point.starts) < wanted]
        if recording.optimum not in close:
            return recording
        print(f"{recording.name}: {len(close)} configurations, {wanted} starts each", flush=True)
        with EngineRunner(path, parse_emulated(recording.emulated)) as runner:
            configs = [point.config for point in close]
            more = _measured(configs, recording.trace, wanted - min(len(p.starts) for p in close), runner)
        points = (Recorded(p.config, p.starts + _starts(more.get(p.config))) for p in recording.points)
        recording = replace(recording, points=tuple(points))


def _starts(point: Recorded | None) -> tuple[Measurement | Failed, ...]:
    return point.starts if point is not None else ()


def _measured(
    configs: list[EngineConfig], trace: Trace, starts: int, runner: EngineRunner
) -> dict[EngineConfig, Recorded]:
    """Each configuration in `starts` processes, with all of its placement in random order."""
    shuffled = random.Random(1)
    outcomes: dict[EngineConfig, list[Measurement | Failed]] = {config: [] for config in configs}
    for _ in range(starts):
        for group in _groups(configs):
            runner.close()
            for config in shuffled.sample(group, len(group)):
                outcomes[config].append(_rounded(runner.measure(config, trace, passes=2, time_limit_s=60)))
    return {config: Recorded(config, tuple(measured)) for config, measured in outcomes.items()}


def _taught(memory: MemoryModel, points: Iterable[Recorded]) -> MemoryModel:
    """What a search would know of memory after these."""
    for point in points:
        first, planned = point.starts[0], point.config.cache.slots if point.config.cache else 0
        if isinstance(first, Measurement) and first.slots == planned:
            memory = memory.observe(point.config, first.fast_bytes)
    return memory


def _hits(model: Model, path: Path) -> HitCurve:
    """What `moetune trace` would have recorded on the same text before the search."""
    with EngineRunner(path) as runner:
        tokens = quality_text(None, WORKLOAD, N_CTX, model.n_vocab, runner).in_chunks.tokens
        workloads = (WorkloadTokens(WORKLOAD.name, tokens),)
        return curve_from_routing(
            record_routing(runner, EngineConfig(n_ctx=N_CTX, n_threads=1), model.fingerprint, workloads, lambda _: None)
        )


def _scores(default: EngineConfig, passage: Passage, runner: EngineRunner) -> dict[str, TokenScores]:
    """Of every type of K against f16, and of f16 with half the micro-batch."""
    base = replace(default, type_k=KvType.F16, n_ctx=passage.n_chunk)
    variants = {str(kind): replace(base, type_k=kind) for kind in KV_TYPES}
    variants[FLOOR] = replace(base, n_ubatch=base.n_ubatch // 2)
    found = runner.score(base, tuple(variants.values()), passage, time_limit_s=600)
    if isinstance(found, Failed):
        raise RuntimeError(f"the quality could not be scored: {found.detail}")
    return {name: _short(scores) for name, scores in zip(variants, found, strict=True)}


def _short(scores: TokenScores) -> TokenScores:
    """To a ten-millionth of a nat: less does not compress."""
    return replace(
        scores, **{name: tuple(round(x, 7) for x in getattr(scores, name)) for name in ("kld", "nll", "base_nll")}
    )


def _groups(configs: list[EngineConfig]) -> Iterator[list[EngineConfig]]:
    for placement in dict.fromkeys(config.placement for config in configs):
        yield [config for config in configs if config.placement == placement]


def _rounded(outcome: Measurement | Failed) -> Measurement | Failed:
    """To a tenth of a microsecond: less is noise that does not compress."""
    if isinstance(outcome, Failed):
        return outcome
    return replace(
        outcome,
        pp_samples_s=tuple(round(s, 7) for s in outcome.pp_samples_s),
        tg_samples_s=tuple(round(s, 7) for s in outcome.tg_samples_s),
        warmup_samples_s=tuple(round(s, 7) for s in outcome.warmup_samples_s),
    )


def keep(name: str, starts: int, more_starts: int, recorded: bool) -> str:
    """Record one landscape into the repository, unless it was `recorded` before, and refine it; what came of it."""
    landscape = next(entry for entry in LANDSCAPES if entry.name == name)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        recording = read(name) if recorded else record(landscape, Path(folder), starts)
        if more_starts:
            recording = refine(recording, landscape.spec, Path(folder), more_starts)
    (FOLDER / f"{name}.json.gz").write_bytes(gzip.compress(RECORDING.dump_json(recording), mtime=0))
    best, took_s = recording.optimum, time.monotonic() - began_s
    return (
        f"{name}: {len(recording.points)} configurations in {took_s:,.0f} s; "
        f"optimum {best.true_turn_s * 1000:.1f} ms a turn: {best.config}"
    )


def main() -> int:
    """Record all landscapes, or those named."""
    names = [entry.name for entry in LANDSCAPES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LANDSCAPE", choices=[*names, []], default=[])
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--more-starts", type=int, default=MORE_STARTS, help="of those close to the fastest")
    parser.add_argument("--recorded", action="store_true", help="add more starts to what is recorded")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    # A process each: an emulated machine that ggml has registered stays registered.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        settings = (repeat(value) for value in (options.starts, options.more_starts, options.recorded))
        for line in pool.map(keep, options.names or names, *settings):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
