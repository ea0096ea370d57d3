"""Run one model through prefill and decode in this process and save every logit, bit for bit.

A program of its own because a ggml backend, once registered, stays for the life of the process.
Prints one JSON line: what the cache counted.
"""

import argparse
import ctypes
import json
import sys
from dataclasses import asdict
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

from moetune.engine import library
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.model_handle import ModelHandle
from moetune.engine.native_log import NativeLog

PREFILL_TOKENS = 40  # more than the engine's largest small batch
STEPS = 24


def main() -> None:
    """Parse, run, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache-device", default=None, help="load the plugin with this fast tier")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--emulated", default=None)
    parser.add_argument("--device", default=None, help="place the dense part of all layers here")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--mmap", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--observe-every", type=int, default=0, help="ask for every n-th node's values (cb_eval)")
    parser.add_argument("--policy-set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()

    if args.emulated:
        from moetune.engine.emulator import library_path, parse_emulated

        library.load_backend(library_path(), parse_emulated(args.emulated).environment())
    cache = None
    if args.cache_device:
        cache = library.HotCache(args.cache_device, "EMUHOST" if args.emulated else None)
        cache.apply(CacheKnobs(slots=args.slots, interval_tokens=1, promotions=4, min_sightings=1, dwell_tokens=2))
        for setting in args.policy_set:
            cache.set(*setting.split("=", 1))
    config = EngineConfig(
        n_ctx=512,
        n_threads=args.threads,
        n_ubatch=64,
        type_k=KvType(args.kv),
        type_v=KvType(args.kv),
        device=args.device,
        gpu_layers=999 if args.device else 0,
        ram_expert_layers=64 if args.device else 0,
        repack=False,
        mmap=args.mmap,
    )
    model = ModelHandle(args.model, NativeLog(sys.stderr), config)
    logits = run(model, config, args.sequences, args.observe_every)
    np.save(args.out, logits)
    counters = library.total(cache.layers()) if cache else None
    model.close()
    print(json.dumps(asdict(counters) if counters else None))


def run(model: ModelHandle, config: EngineConfig, n_sequences: int, observe_every: int) -> np.ndarray:
    """Logits [rows, n_vocab]: the last prompt token of each sequence, then every decoded token of each."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = config.n_ctx, 256, config.n_ubatch
    params.n_seq_max, params.kv_unified = n_sequences, True
    params.n_threads = params.n_threads_batch = config.n_threads
    params.type_k = params.type_v = {KvType.F16: 1, KvType.Q8_0: 8}[config.type_k]
    asked = 0

    @llama.ggml_backend_sched_eval_callback
    def observe(_node: int, asking: bool, _data: int) -> bool:
        nonlocal asked
        asked += asking
        return not asking or asked % observe_every == 0

    if observe_every:
        params.cb_eval = observe
    context = llama.llama_init_from_model(model._model, params)
    if not context:
        sys.exit("no context")
    rng = np.random.default_rng(7)
    rows: list[np.ndarray] = []

    def decode(tokens: np.ndarray, first_position: int) -> None:
        """tokens [n_sequences, n]: the last column's logits are kept."""
        n = tokens.shape[1]
        batch = llama.llama_batch_init(tokens.size, 0, n_sequences)
        batch.n_tokens = tokens.size
        for s in range(n_sequences):
            for i in range(n):
                at = s * n + i
                batch.token[at], batch.pos[at] = int(tokens[s, i]), first_position + i
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, s, i == n - 1
        status = llama.llama_decode(context, batch)
        if status != 0:
            sys.exit(f"llama_decode returned {status}")
        for s in range(n_sequences):
            pointer = llama.llama_get_logits_ith(context, s * n + n - 1)
            view = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * model.n_vocab)).contents
            rows.append(np.array(view, dtype=np.float32))
        llama.llama_batch_free(batch)

    high = min(model.n_vocab, 250)
    decode(rng.integers(1, high, (n_sequences, PREFILL_TOKENS)), 0)
    position = PREFILL_TOKENS
    for _ in range(STEPS):
        decode(rng.integers(1, high, (n_sequences, 1)), position)
        position += 1
    decode(rng.integers(1, high, (n_sequences, 5)), position)
    llama.llama_free(context)
    return np.stack(rows)


if __name__ == "__main__":
    main()
