"""What the cost model knows of a machine: a few speeds, from the probe where it has them, else assumed and said so."""

from dataclasses import dataclass, replace
from enum import StrEnum

from moetune.autotune.tier import FastTier
from moetune.hardware import assumptions as assumed
from moetune.hardware.assumptions import Assumption
from moetune.hardware.machine import Compute, DeviceKind, Link, Machine, reason_for

_GIGA = 1e9
# Of the packed layout over the plain one, decoding Q4_0 on one core or two: 1 / 0.75, benchmarks/results/engine.json.
REPACK_GAIN = 1.33


class Resource(StrEnum):
    """What a turn can wait for."""

    VRAM = "VRAM capacity"
    DEVICE = "device bandwidth"
    RAM = "RAM bandwidth"
    LINK = "link"
    FIXED = "fixed cost a layer"
    COMPUTE = "compute"


@dataclass(frozen=True)
class Saturating:
    """Bytes a second that threads read together: so many each, until the memory gives no more."""

    each: float
    most: float

    def rate(self, threads: int, gain: float = 1.0) -> float:
        """gain: what a better layout of the weights makes of one thread's rate."""
        return min(self.most, threads * self.each * gain)

    def times(self, factor: float) -> "Saturating":
        return Saturating(self.each * factor, self.most * factor)


@dataclass(frozen=True)
class Figures:
    """Speeds of one machine and its fast tier, in bytes, operations and seconds.

    host, host_experts: RAM read by products with dense and with experts' weights. host_ops: operations a second of one
    thread's products with a batch. node_s, host_node_s: what each operation of a graph costs by itself. join_s: a layer
    handed from the device to the CPU and back. cached_s: what a layer with slots costs beyond that. token_s: what a
    token costs besides. assumed: what was not measured.
    """

    host: Saturating
    host_experts: Saturating
    host_ops: float
    host_node_s: float
    device: float
    device_ops: float
    node_s: float
    join_s: float
    cached_s: float
    link: float
    token_s: float
    assumed: tuple[Assumption, ...]

    def better(self, resource: Resource, factor: float) -> "Figures":
        """The same machine with `factor` times as much of one thing; VRAM is not among these figures."""
        match resource:
            case Resource.DEVICE:
                return replace(self, device=self.device * factor)
            case Resource.RAM:
                return replace(self, host=self.host.times(factor), host_experts=self.host_experts.times(factor))
            case Resource.LINK:
                return replace(self, link=self.link * factor)
            case Resource.COMPUTE:
                return replace(self, host_ops=self.host_ops * factor, device_ops=self.device_ops * factor)
            case Resource.FIXED:
                costs = ("node_s", "host_node_s", "join_s", "cached_s", "token_s")
                return replace(self, **{name: getattr(self, name) / factor for name in costs})
            case Resource.VRAM:
                return self


# Graph building and sampling, from recorded runs with everything on the emulated device: 0.3 to 0.4 ms a token.
_TOKEN_S = 3e-4


def figures_of(machine: Machine, tier: FastTier | None) -> Figures:
    """The figures of `machine` with `tier` as its fast tier."""
    guess = _Guesses()
    cpu = next((c for c in machine.compute if _kind(machine, c.device) is DeviceKind.CPU), None)
    # An emulated machine's experts are computed by its own slow host.
    slow = next((c for c in machine.compute if c.emulated and _kind(machine, c.device) is DeviceKind.ACCEL), None)
    on_host = tier is None or tier.on_host
    fast = None if on_host else next((c for c in machine.compute if tier and c.device == tier.name), None)
    link = None if on_host else next((k for k in machine.links if tier and k.device == tier.name), None)
    read = machine.memory.read_all_threads
    ram = read.gbps * _GIGA if read else guess(assumed.RAM_GBPS) * _GIGA
    one = machine.memory.read_1_thread
    each = (one.gbps if one else guess(assumed.CORE_GBPS)) * _GIGA
    device = (link.device_memory.gbps if link and link.device_memory else 0.0) * _GIGA
    if link and reason_for(link.missing, "device_memory") == str(assumed.DEVICE_ATTAINED):
        guess(assumed.DEVICE_ATTAINED)
    if on_host:
        device = ram
    elif not device:
        device = guess(assumed.DEVICE_GBPS) * guess(assumed.DEVICE_ATTAINED) * _GIGA
    ops = (cpu.batch_gflops / cpu.threads if cpu and cpu.batch_gflops else guess(assumed.CORE_GFLOPS)) * _GIGA
    return Figures(
        host=_saturating(cpu, ram, guess) or Saturating(each, ram * guess(assumed.HOST_ATTAINED)),
        host_experts=_saturating(slow or cpu, ram, guess) or Saturating(each, ram * guess(assumed.EXPERTS_ATTAINED)),
        host_ops=ops,
        host_node_s=cpu.node_s if cpu and cpu.node_s else guess(assumed.HOST_NODE_US) * 1e-6,
        device=device,
        device_ops=_device_ops(fast, device, ops, on_host, guess),
        node_s=_or_assumed(fast.node_s if fast else None, assumed.NODE_US, on_host, guess),
        join_s=_or_assumed(fast.join_s if fast else None, assumed.JOIN_US, on_host, guess),
        # Recorded runs show no such cost on the emulated device; on a GPU none of moetune's are recorded.
        cached_s=0.0 if on_host or (tier and tier.emulated) else guess(assumed.CACHED_LAYER_US) * 1e-6,
        link=ram if on_host else _link_bytes_s(link, guess),
        token_s=_TOKEN_S,
        assumed=guess.made,
    )


class _Guesses:
    """Hands out assumed values and remembers which."""

    def __init__(self) -> None:
        self._made: dict[Assumption, None] = {}

    def __call__(self, assumption: Assumption) -> float:
        self._made[assumption] = None
        return assumption.value

    @property
    def made(self) -> tuple[Assumption, ...]:
        return tuple(self._made)


def _kind(machine: Machine, name: str) -> DeviceKind | None:
    return next((device.kind for device in machine.devices if device.name == name), None)


def _saturating(measured: Compute | None, ram: float, guess: _Guesses) -> Saturating | None:
    """From the rates of one thread and of all; where all of them did not fill the memory, more would read more."""
    if measured is None or measured.experts is None:
        return None
    if measured.experts_1_thread is None:
        return Saturating(measured.experts.gbps * _GIGA, measured.experts.gbps * _GIGA)
    one, all_ = measured.experts_1_thread.gbps * _GIGA, measured.experts.gbps * _GIGA
    most = max(one, all_)
    scaled = measured.threads > 1 and all_ > 0.7 * measured.threads * one
    return Saturating(one, max(most, ram * guess(assumed.HOST_ATTAINED)) if scaled else most)


def _device_ops(fast: Compute | None, device: float, host_ops: float, on_host: bool, guess: _Guesses) -> float:
    if on_host:
        return host_ops
    return fast.batch_gflops * _GIGA if fast and fast.batch_gflops else device * guess(assumed.DEVICE_OPS_A_BYTE)


def _or_assumed(seconds: float | None, assumption: Assumption, on_host: bool, guess: _Guesses) -> float:
    if seconds is not None:
        return seconds
    return 0.0 if on_host else guess(assumption) * 1e-6


def _link_bytes_s(link: Link | None, guess: _Guesses) -> float:
    transfers = link.bulk if link else None
    rate = (transfers.h2d_pinned or transfers.h2d_pageable) if transfers else None
    return (rate.gbps if rate else guess(assumed.LINK_GBPS)) * _GIGA
