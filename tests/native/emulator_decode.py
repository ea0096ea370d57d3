"""Decode a fixed trace with stock llama.cpp in this process, with or without the emulated machine, and save the logits.

Run by test_emulator.py, one process a configuration, because what ggml has registered stays registered.
"""

import argparse
import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np

# Above and below the 32 tokens from which llama.cpp streams host weights to an accelerator.
PROMPT_TOKENS = 40
DECODED_TOKENS = 8

# The members of emu_counter_values, in order, up to the last one looked at.
COUNTERS = (
    "h2d_bytes",
    "d2h_bytes",
    "h2d_transfers",
    "d2h_transfers",
    "graphs",
    "launches",
    "device_bytes",
    "host_expert_bytes",
)


class _Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


class _Counters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in COUNTERS]


def main() -> None:
    """Print the emulator's counters after the prompt and after decoding, as two lines of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("logits", type=Path)
    parser.add_argument("--emulator", type=Path)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--experts-in-ram", action="store_true")
    parser.add_argument("--repack", action="store_true")
    options = parser.parse_args()

    lib: Any = llama._lib
    lib.ggml_backend_load.argtypes, lib.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    lib.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    emulator = None
    if options.emulator:
        assert lib.ggml_backend_load(str(options.emulator).encode())
        emulator = ctypes.CDLL(str(options.emulator))

    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = options.gpu_layers
    # With an accelerator whose host memory can be pinned, llama.cpp prefers that to the CPU's own layouts.
    model_params.use_extra_bufts = model_params.no_host = options.repack
    if options.experts_in_ram:
        experts_on_cpu = _Override(rb"\.ffn_(up|down|gate)_exps", lib.ggml_backend_cpu_buffer_type())
        overrides = (_Override * 2)(experts_on_cpu)
        model_params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    model = llama.llama_model_load_from_file(str(options.model).encode(), model_params)
    assert model
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = 256
    context_params.n_ubatch = 64
    context_params.n_threads = context_params.n_threads_batch = 1
    context = llama.llama_init_from_model(model, context_params)
    assert context

    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    trace = [int(token) for token in np.random.default_rng(0).integers(0, 256, PROMPT_TOKENS + DECODED_TOKENS)]
    rows = [_decode(context, n_vocab, trace[:PROMPT_TOKENS])]
    _report(emulator)
    rows += [_decode(context, n_vocab, [token]) for token in trace[PROMPT_TOKENS:]]
    _report(emulator)
    np.save(options.logits, np.stack(rows))


def _decode(context: Any, n_vocab: int, tokens: list[int]) -> np.ndarray:
    owned = (llama.llama_token * len(tokens))(*tokens)
    assert llama.llama_decode(context, llama.llama_batch_get_one(owned, len(tokens))) == 0
    return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(n_vocab,)).copy()


def _report(emulator: ctypes.CDLL | None) -> None:
    counters = _Counters()
    if emulator is not None:
        assert emulator.emu_counters(ctypes.byref(counters), ctypes.c_size_t(ctypes.sizeof(counters))) == 0
    print(json.dumps({name: getattr(counters, name) for name in COUNTERS}))


if __name__ == "__main__":
    # Nothing is freed: a program may also exit in the middle of its work.
    main()
