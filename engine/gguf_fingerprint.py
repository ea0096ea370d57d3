"""A model's fingerprint: by content, so that a moved, copied, split or merged file keeps its profile."""

import hashlib
import os

from moetune.engine.gguf_header import GgufHeader

# Enough to read a small model whole, little enough for a 200 GB one in well under two seconds.
SAMPLE_BUDGET_BYTES = 32 << 20
SMALLEST_SAMPLE_BYTES = 4 << 10
# How a model is cut into files is not what it is.
_LAYOUT_KEYS = ("split.", "general.alignment")


def fingerprint(headers: tuple[GgufHeader, ...]) -> str:
    """32 hex digits over all metadata, all tensor names, shapes and types, and the ends of every tensor's data."""
    digest = hashlib.sha256(b"moetune gguf 1")
    raw = headers[0].raw
    for key in sorted(key for key in raw if not key.startswith(_LAYOUT_KEYS)):
        digest.update(f"{key}\0{len(raw[key])}\0".encode())
        digest.update(raw[key])
    located = sorted(((t, header) for header in headers for t in header.tensors), key=lambda pair: pair[0].name)
    sample_bytes = max(SMALLEST_SAMPLE_BYTES, SAMPLE_BUDGET_BYTES // (2 * max(1, len(located))))
    files = {header.path: os.open(header.path, os.O_RDONLY) for header in headers}
    try:
        for tensor, header in located:
            digest.update(f"{tensor.name}\0{tensor.shape}\0{tensor.type_name}\0".encode())
            head_bytes = min(tensor.n_bytes, sample_bytes)
            tail_bytes = min(tensor.n_bytes - head_bytes, sample_bytes)
            digest.update(os.pread(files[header.path], head_bytes, tensor.offset))
            digest.update(os.pread(files[header.path], tail_bytes, tensor.offset + tensor.n_bytes - tail_bytes))
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    return digest.hexdigest()[:32]
