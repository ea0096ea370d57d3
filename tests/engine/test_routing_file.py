"""The recording's file: what is written is what is read, to the byte, and nothing damaged is read at all."""

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routing_samples import FINGERPRINT, random_routing, same

from moetune.engine.routing import RoutedLayer, Routing, WorkloadRouting
from moetune.engine.routing_file import decode, encode, read_routing
from moetune.errors import ExitCode, MoetuneError

SMALL = random_routing((RoutedLayer(0, 6, 2), RoutedLayer(3, 300, 1)), {"code": 5, "prosé": 3})
SMALL_BYTES = encode(SMALL)

routed_layers = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 3)).map(lambda pair: (pair[0], min(pair))), min_size=1, max_size=3
)
names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(routed_layers, st.dictionaries(names, st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 99))
def test_what_is_written_is_read(shapes: list[tuple[int, int]], tokens: dict[str, int], seed: int) -> None:
    """Ids, their types, names and the model's fingerprint survive; the bytes are the same again."""
    layers = tuple(RoutedLayer(7 * i, n_expert, n_used) for i, (n_expert, n_used) in enumerate(shapes))
    routing = random_routing(layers, tokens, seed)
    raw = encode(routing)
    assert same(decode(raw), routing)
    assert encode(decode(raw)) == raw


def test_the_layout_is_the_documented_one() -> None:
    """Put together by hand, field by field: another program may read this file."""
    routing = Routing(
        FINGERPRINT,
        (RoutedLayer(1, 3, 2), RoutedLayer(2, 257, 1)),
        (WorkloadRouting("ab", (np.array([[0, 2], [2, 1]], np.uint8), np.array([[256], [0]], np.uint16))),),
    )
    wide = [0] * 257
    wide[0] = wide[256] = 1
    by_hand = b"".join(
        [
            b"MOETRACE",
            struct.pack("<IIII", 1, 1, 2, 0),
            FINGERPRINT.encode() + b"0" * 32,
            struct.pack("<iII", 1, 3, 2),
            struct.pack("<iII", 2, 257, 1),
            struct.pack("<I2sI", 2, b"ab", 2),
            struct.pack("<3I", 1, 1, 2),
            struct.pack("<257I", *wide),
            bytes([0, 2, 2, 1]),
            struct.pack("<2H", 256, 0),
        ]
    )
    assert encode(routing) == by_hand


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    """A file that ends too early, wherever that is, gives the documented error and names the file."""
    path = tmp_path / "cut.moetrace"
    for n_bytes in range(len(SMALL_BYTES)):
        path.write_bytes(SMALL_BYTES[:n_bytes])
        with pytest.raises(MoetuneError, match=r"cut\.moetrace is not valid") as caught:
            read_routing(path)
        assert caught.value.code is ExitCode.STORAGE


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_file_is_an_error_or_another_valid_file(data: st.DataObject) -> None:
    """Bytes overwritten, put in or taken out: what is still read is exactly what the bytes say."""
    raw = bytearray(SMALL_BYTES)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        piece = data.draw(st.binary(min_size=0, max_size=6))
        raw[at : at + data.draw(st.integers(0, 6))] = piece
    try:
        routing = decode(bytes(raw))
    except ValueError:
        return
    assert encode(routing) == bytes(raw)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(8, 120), st.sampled_from([0xFFFFFFFF, 0x7FFFFFFF, 0x10000, 257, 0]))
def test_absurd_sizes_are_refused_without_the_memory_they_claim(at: int, claim: int) -> None:
    """Any 32-bit field of the head may say anything; nothing of that size is allocated."""
    raw = bytearray(SMALL_BYTES)
    raw[at : at + 4] = struct.pack("<I", claim)
    tracemalloc.start()
    try:
        assert encode(decode(bytes(raw))) == bytes(raw)
    except ValueError:
        pass  # refused, as most are
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20


def field(offset: int, value: int) -> bytes:
    return SMALL_BYTES[:offset] + struct.pack("<I", value) + SMALL_BYTES[offset + 4 :]


def with_first_token(*experts: int) -> bytes:
    """`SMALL` with other experts for the very first token, counts adjusted."""
    ids = SMALL.workloads[0].ids[0]
    was, now = SMALL.counts[0][0], SMALL.counts[0][0].copy()
    np.add.at(now, ids[0], -1)
    np.add.at(now, np.array(experts), 1)
    raw = SMALL_BYTES.replace(was.astype("<u4").tobytes(), now.astype("<u4").tobytes())
    return raw.replace(ids.tobytes(), np.array(experts, np.uint8).tobytes() + ids[1:].tobytes())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "truncated"),
        (b"GGUF" + bytes(200), "another kind"),
        (field(8, 2), "version 2"),
        (field(12, 0), "number of workloads"),
        (field(12, 65), "number of workloads"),
        (field(16, 0), "number of layers"),
        (field(16, 4097), "number of layers"),
        (field(20, 1), "damaged"),
        (SMALL_BYTES[:24] + b"X" + SMALL_BYTES[25:], "damaged"),
        (field(88, 0xFFFFFFFF), "index of a layer"),
        (field(92, 65537), "number of experts"),
        (field(96, 7), "number of experts used"),
        (field(100, 0), "layer twice"),
        (field(112, 256), "length of a name"),
        (SMALL_BYTES[:116] + b"\xff" + SMALL_BYTES[117:], "not text"),
        (SMALL_BYTES[:116] + b"\x1b" + SMALL_BYTES[117:], "not text"),
        (field(124, SMALL.counts[0][0][0] + 1), "counts of layer 0"),
        (SMALL_BYTES[:-1] + b"\xff", "layer 3 has an expert"),
        (SMALL_BYTES + b"\0", "1 bytes follow"),
        (with_first_token(0, 0), "same expert twice"),
    ],
)
def test_each_fault_is_named(raw: bytes, words: str) -> None:
    """The message says what is wrong with the file."""
    with pytest.raises(ValueError, match=words):
        decode(raw)


def test_two_workloads_of_one_name_are_refused() -> None:
    """Whoever asks for a workload by name must get one answer; a writer is stopped too."""
    twice = replace(SMALL, workloads=(SMALL.workloads[0], replace(SMALL.workloads[1], name="code")))
    with pytest.raises(ValueError, match="workload twice"):
        encode(twice)


def test_what_cannot_be_read_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """A missing file and a folder, by name."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(MoetuneError, match="cannot be read") as caught:
            read_routing(path)
        assert caught.value.code is ExitCode.STORAGE
        assert "--text" in caught.value.remedy
