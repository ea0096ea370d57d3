"""The configurations one step away from a good one: what the cost model cannot tell apart is found by trying."""

from collections.abc import Iterator

from moetune.autotune.knobs import Choice, Knob
from moetune.autotune.memory import MemoryModel
from moetune.autotune.space import Space
from moetune.engine.config import EngineConfig


def neighbours(space: Space, memory: MemoryModel, config: EngineConfig) -> tuple[EngineConfig, ...]:
    """Those that differ in one knob, by one step where it has an order, and fit; first those that need no reload."""
    point = space.params_of(config, memory)
    found = dict.fromkeys(
        space.config_of({**point, knob.name: knob.encode(choice)}, memory)
        for knob in space.knobs
        for choice in _beside(knob, knob.decode(point[knob.name]))
    )
    fitting = [other for other in found if other != config and max(memory.excess_bytes(other)) <= 0]
    return tuple(sorted(fitting, key=lambda other: other.placement != config.placement))


def filled(space: Space, memory: MemoryModel, config: EngineConfig) -> EngineConfig:
    """The same with slots in all the room that is known now; trials teach that buffers take less than was feared."""
    knob = next((knob for knob in space.knobs if knob.name == "slots_percent"), None)
    if knob is None or not config.has_slots:
        return config
    return space.config_of({**space.params_of(config, memory), knob.name: knob.encode(knob.choices[-1])}, memory)


def _beside(knob: Knob, value: Choice) -> Iterator[Choice]:
    if not knob.ordered or value not in knob.choices:
        yield from (choice for choice in knob.choices if choice != value)
        return
    at = knob.choices.index(value)
    yield from (knob.choices[i] for i in (at - 1, at + 1) if 0 <= i < len(knob.choices))
