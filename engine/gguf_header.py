"""The header of one GGUF file, read without trusting a single number in it.

`gguf.GGUFReader` believes every count and length it meets, and takes 8 s and 500 MB on a vocabulary of 150,000
tokens; so the walk is our own, bounded by the file's size, and only the type tables are gguf's.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from moetune.errors import ExitCode, MoetuneError

Scalar = str | int | float | bool
MAX_KEY_BYTES = 65_535
MAX_KV = 100_000
MAX_TENSORS = 1_000_000
MAX_ARRAY = 16_000_000
MAX_TENSOR_NAME_BYTES = 64
MAX_DIMS = 4
# Longer arrays (the vocabulary) are walked but not kept; the longest we need has one entry a layer.
KEPT_ARRAY = 4_096

_SCALARS: dict[int, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class CorruptHeaderError(ValueError):
    """The bytes are not a GGUF header this project can use; the text says where."""


@dataclass(frozen=True)
class Array:
    """A metadata array; `items` is None where it was too long to keep."""

    length: int
    items: tuple[Scalar, ...] | None


Value = Scalar | Array


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in ggml's order (innermost first), `offset` in bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """One file's header. `raw` holds each metadata value's bytes as they stand in the file, for fingerprints."""

    path: Path
    file_bytes: int
    metadata: dict[str, Value]
    raw: dict[str, bytes]
    tensors: tuple[TensorInfo, ...]


class _Cursor:
    """Reads forward; every read is checked against the file's end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.at = 0

    def left(self) -> int:
        return self.size - self.at

    def take(self, form: struct.Struct) -> Scalar:
        if form.size > self.left():
            raise CorruptHeaderError("the header goes on past the end of the file")
        value: Scalar = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return value

    def count(self, form: struct.Struct) -> int:
        return int(self.take(form))

    def skip(self, n_bytes: int) -> None:
        if n_bytes > self.left():
            raise CorruptHeaderError(f"a value of {n_bytes:,} bytes goes past the end of the file")
        self.at += n_bytes

    def string(self, max_bytes: int | None = None) -> str:
        length = self.count(_U64)
        if max_bytes is not None and length > max_bytes:
            raise CorruptHeaderError(f"a name is {length:,} bytes long, more than the {max_bytes:,} allowed")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def skip_string(self) -> None:
        self.skip(self.count(_U64))


def read_header(path: Path) -> GgufHeader:
    """Read one GGUF file's header; raises MoetuneError (MODEL) for anything that is not a whole, sound one."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise CorruptHeaderError("it is empty" if size == 0 else f"it is only {size} bytes long")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data, size)
    except FileNotFoundError:
        raise MoetuneError(f"There is no file {path}.", "Check the path of the GGUF file.", ExitCode.MODEL) from None
    except IsADirectoryError:
        raise MoetuneError(
            f"{path} is a directory.", "Name one GGUF file inside it (any shard of a split model).", ExitCode.MODEL
        ) from None
    except CorruptHeaderError as error:
        raise MoetuneError(
            f"{path} is not a usable GGUF file: {error}.",
            "Download or convert the model again, and compare its size with the source's.",
            ExitCode.MODEL,
        ) from None
    except (OSError, ValueError) as error:
        raise MoetuneError(
            f"{path} cannot be read: {error}.", "Check that it is a regular file you may read.", ExitCode.MODEL
        ) from None


def _parse(path: Path, data: mmap.mmap, size: int) -> GgufHeader:
    cursor = _Cursor(data, size)
    if data[:4] != b"GGUF":
        raise CorruptHeaderError("it does not begin with the letters GGUF")
    cursor.skip(4)
    _check_version(cursor.count(_U32))
    n_tensors, n_kv = cursor.count(_U64), cursor.count(_U64)
    if n_tensors > min(MAX_TENSORS, cursor.left() // 24):
        raise CorruptHeaderError(f"its header claims {n_tensors:,} tensors, more than the file can hold")
    if n_kv > min(MAX_KV, cursor.left() // 13):
        raise CorruptHeaderError(f"its header claims {n_kv:,} metadata entries, more than the file can hold")
    metadata, raw = _read_metadata(cursor, n_kv)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise CorruptHeaderError(f"its alignment {alignment!r} is not a power of two")
    tensors = _read_tensors(cursor, n_tensors, alignment)
    return GgufHeader(path, size, metadata, raw, tensors)


def _check_version(version: int) -> None:
    if version in (2, 3):
        return
    if version == 1:
        raise CorruptHeaderError("it is GGUF version 1, which llama.cpp reads no more; convert the model again")
    if version & 0xFFFF == 0 and version >> 24 in (1, 2, 3):
        raise CorruptHeaderError("it was written for the other byte order (big-endian)")
    raise CorruptHeaderError(f"it says GGUF version {version}; 2 and 3 are known")


def _read_metadata(cursor: _Cursor, n_kv: int) -> tuple[dict[str, Value], dict[str, bytes]]:
    metadata: dict[str, Value] = {}
    raw: dict[str, bytes] = {}
    for _ in range(n_kv):
        key = cursor.string(MAX_KEY_BYTES)
        if key in metadata:
            raise CorruptHeaderError(f"its metadata names {key!r} twice")
        start = cursor.at
        metadata[key] = _read_value(cursor, cursor.count(_U32))
        raw[key] = cursor.data[start : cursor.at]
    return metadata, raw


def _read_value(cursor: _Cursor, kind: int) -> Value:
    if kind == GGUFValueType.STRING:
        return cursor.string()
    if kind == GGUFValueType.ARRAY:
        return _read_array(cursor)
    if kind not in _SCALARS:
        raise CorruptHeaderError(f"its metadata holds a value of unknown type {kind}")
    return cursor.take(_SCALARS[kind])


def _read_array(cursor: _Cursor) -> Array:
    kind, length = cursor.count(_U32), cursor.count(_U64)
    item_bytes = 8 if kind == GGUFValueType.STRING else _SCALARS[kind].size if kind in _SCALARS else 0
    if item_bytes == 0:
        raise CorruptHeaderError(f"its metadata holds an array of unknown type {kind}")
    if length > min(MAX_ARRAY, cursor.left() // item_bytes):
        raise CorruptHeaderError(f"its metadata claims an array of {length:,} items, more than the file can hold")
    if kind == GGUFValueType.STRING:
        for _ in range(length):
            cursor.skip_string()
        return Array(length, None)
    if length > KEPT_ARRAY:
        cursor.skip(length * item_bytes)
        return Array(length, None)
    return Array(length, tuple(cursor.take(_SCALARS[kind]) for _ in range(length)))


def _read_tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
    entries = [_read_tensor_entry(cursor) for _ in range(n_tensors)]
    if len({name for name, *_ in entries}) != n_tensors:
        raise CorruptHeaderError("two of its tensors have the same name")
    data_start = -(-cursor.at // alignment) * alignment
    expected = 0
    tensors = []
    for name, shape, type_id, offset in entries:
        type_name, n_bytes = _tensor_bytes(name, shape, type_id)
        if offset != expected:  # ggml refuses anything but tensors laid end to end
            raise CorruptHeaderError(f"tensor {name!r} does not begin where the one before it ends")
        expected += -(-n_bytes // alignment) * alignment
        if data_start + offset + n_bytes > cursor.size:
            raise CorruptHeaderError(
                f"it is cut short: tensor {name!r} ends at byte {data_start + offset + n_bytes:,} "
                f"of a file of {cursor.size:,}"
            )
        tensors.append(TensorInfo(name, shape, type_name, n_bytes, data_start + offset))
    return tuple(tensors)


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(MAX_TENSOR_NAME_BYTES)
    n_dims = cursor.count(_U32)
    if n_dims > MAX_DIMS:
        raise CorruptHeaderError(f"tensor {name!r} claims {n_dims:,} dimensions")
    shape = tuple(cursor.count(_U64) for _ in range(n_dims))
    return name, shape, cursor.count(_U32), cursor.count(_U64)


def _tensor_bytes(name: str, shape: tuple[int, ...], type_id: int) -> tuple[str, int]:
    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError:
        raise CorruptHeaderError(f"tensor {name!r} has the unknown type {type_id}") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    n_values = 1
    for extent in shape:
        n_values *= extent
    if n_values <= 0 or (shape and shape[0] % block):
        raise CorruptHeaderError(f"tensor {name!r} has the impossible shape {shape} for type {kind.name}")
    return kind.name, n_values // block * block_bytes
