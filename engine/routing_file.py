"""A recorded pass as a file: little-endian, compact, and refused as a whole when any of it is not as it should be.

    8 bytes  "MOETRACE"
    u32      version, 1
    u32      workloads
    u32      layers
    u32      0
    64 bytes model fingerprint: lower-case hex digits in ASCII; one of 32 digits is followed by 32 times "0"
    layers x { i32 index, u32 experts, u32 used }
    workloads x { u32 bytes of the name, name in UTF-8, u32 tokens, layers x u32 counts[experts] }
    workloads x layers x ids[tokens x used], token-major: u8 where the layer has at most 256 experts, else u16

The counts come before all ids so that a reader who needs only them reads the beginning.
"""

import re
import struct
from pathlib import Path

import numpy as np

from moetune.engine.routing import Ids, RoutedLayer, Routing, WorkloadRouting, count, names_expert_twice
from moetune.errors import ExitCode, MoetuneError

MAX_LAYERS = 4_096
MAX_EXPERTS = 65_536
MAX_WORKLOADS = 64
MAX_NAME_BYTES = 255
MAX_FILE_BYTES = 4 << 30

_MAGIC = b"MOETRACE"
_VERSION = 1
_HEAD = struct.Struct("<8sIIII64s")
_LAYER = struct.Struct("<iII")
_NUMBER = struct.Struct("<I")
_FINGERPRINT = re.compile(rb"[0-9a-f]{64}")
_PADDING = "0" * 32


class _BadRouting(ValueError):
    """The bytes are not a recorded pass; the message says why."""


def encode(routing: Routing) -> bytes:
    """The file's content. What `decode` would refuse is a bug of the caller and raises ValueError."""
    fingerprint = routing.model_fingerprint.ljust(2 * len(_PADDING), "0").encode()
    head = _HEAD.pack(_MAGIC, _VERSION, len(routing.workloads), len(routing.layers), 0, fingerprint)
    parts = [head, *(_LAYER.pack(layer.index, layer.n_expert, layer.n_used) for layer in routing.layers)]
    for workload, counts in zip(routing.workloads, routing.counts, strict=True):
        name = workload.name.encode()
        parts += [_NUMBER.pack(len(name)), name, _NUMBER.pack(workload.n_tokens)]
        parts += [of_layer.astype("<u4").tobytes() for of_layer in counts]
    for workload in routing.workloads:
        parts += [
            ids.astype(layer.id_type, copy=False).tobytes()
            for layer, ids in zip(routing.layers, workload.ids, strict=True)
        ]
    content = b"".join(parts)
    decode(content)
    return content


def read_routing(path: Path) -> Routing:
    """The pass recorded in the file at `path`. Raises MoetuneError (STORAGE) for anything else."""
    try:
        with path.open("rb") as file:
            # Not a byte more of a large file of another kind, such as the model itself.
            head = file.read(len(_MAGIC))
            return decode(head + file.read(MAX_FILE_BYTES) if head == _MAGIC else head)
    except OSError as error:
        raise MoetuneError(
            f"The recorded routing {path} cannot be read: {error.strerror or error}.",
            "Check the path and who may read it, or record it with --text FILE.",
            ExitCode.STORAGE,
        ) from error
    except _BadRouting as error:
        raise MoetuneError(
            f"The recorded routing {path} is not valid: {error}.",
            "Delete it and record it again with --text FILE. It was left as it is.",
            ExitCode.STORAGE,
        ) from error


def decode(raw: bytes) -> Routing:
    """The pass in a file's content. Raises ValueError, saying why, for anything but exactly one valid file."""
    if len(raw) > MAX_FILE_BYTES:
        raise _BadRouting(f"it is larger than {MAX_FILE_BYTES >> 30} GiB")
    return _Reader(raw).routing()


class _Reader:
    """Walks over the bytes from front to back; nothing is allocated that the bytes left could not fill."""

    def __init__(self, raw: bytes) -> None:
        self._raw = memoryview(raw)
        self._at = 0

    def routing(self) -> Routing:
        if self._raw[: len(_MAGIC)] != _MAGIC[: len(self._raw)]:
            raise _BadRouting("it is a file of another kind")
        _, version, n_workloads, n_layers, reserved, padded = _HEAD.unpack(self._take(_HEAD.size))
        if version != _VERSION:
            raise _BadRouting(f"it has version {version}, this moetune reads {_VERSION}")
        _within("number of workloads", n_workloads, 1, MAX_WORKLOADS)
        _within("number of layers", n_layers, 1, MAX_LAYERS)
        if reserved != 0 or not _FINGERPRINT.fullmatch(padded):
            raise _BadRouting("its head is damaged")
        layers = tuple(self._layer() for _ in range(n_layers))
        if len({layer.index for layer in layers}) != n_layers:
            raise _BadRouting("it names a layer twice")
        heads = [self._workload(layers) for _ in range(n_workloads)]
        if len({name for name, _, _ in heads}) != n_workloads:
            raise _BadRouting("it names a workload twice")
        workloads = tuple(
            WorkloadRouting(
                name,
                tuple(self._ids(layer, n_tokens, kept) for layer, kept in zip(layers, counts, strict=True)),
            )
            for name, n_tokens, counts in heads
        )
        if self._at != len(self._raw):
            raise _BadRouting(f"{len(self._raw) - self._at:,} bytes follow its end")
        return Routing(padded.decode("ascii").removesuffix(_PADDING), layers, workloads)

    def _layer(self) -> RoutedLayer:
        index, n_expert, n_used = _LAYER.unpack(self._take(_LAYER.size))
        _within("index of a layer", index, 0, MAX_LAYERS - 1)
        _within("number of experts", n_expert, 1, MAX_EXPERTS)
        _within("number of experts used", n_used, 1, n_expert)
        return RoutedLayer(index, n_expert, n_used)

    def _workload(self, layers: tuple[RoutedLayer, ...]) -> tuple[str, int, list[memoryview]]:
        n_name = self._number()
        _within("length of a name", n_name, 1, MAX_NAME_BYTES)
        try:
            name = bytes(self._take(n_name)).decode()
        except UnicodeDecodeError:
            raise _BadRouting("a workload's name is not text") from None
        if not name.isprintable():
            raise _BadRouting("a workload's name is not text")
        n_tokens = self._number()
        # More than that the file could not hold, whatever it says.
        _within("number of tokens", n_tokens, 1, len(self._raw))
        return name, n_tokens, [self._take(4 * layer.n_expert) for layer in layers]

    def _ids(self, layer: RoutedLayer, n_tokens: int, kept_counts: memoryview) -> Ids:
        raw = self._take(layer.id_bytes(n_tokens))
        ids = np.frombuffer(raw, layer.id_type).reshape(n_tokens, layer.n_used)
        if int(ids.max()) >= layer.n_expert:
            raise _BadRouting(f"layer {layer.index} has an expert {ids.max()} of {layer.n_expert}")
        if names_expert_twice(ids):
            raise _BadRouting(f"a token of layer {layer.index} has the same expert twice")
        if not np.array_equal(np.frombuffer(kept_counts, "<u4"), count(ids, layer.n_expert)):
            raise _BadRouting(f"the counts of layer {layer.index} are not those of its ids")
        return ids

    def _number(self) -> int:
        value: int = _NUMBER.unpack(self._take(_NUMBER.size))[0]
        return value

    def _take(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self._raw) - self._at:
            raise _BadRouting("it is truncated")
        piece = self._raw[self._at : self._at + n_bytes]
        self._at += n_bytes
        return piece


def _within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _BadRouting(f"{value} is not a possible {what} ({least} to {most})")
