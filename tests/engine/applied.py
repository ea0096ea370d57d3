"""Load and run one configuration as a worker does, and tell what llama.cpp made of it; one process a configuration.

Run by test_config_is_applied.py with a JSON object as argument; prints one back, and saves logits [steps, vocabulary].
"""

import io
import json
import sys
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
from pydantic import TypeAdapter

from moetune.engine import library
from moetune.engine.config import EngineConfig
from moetune.engine.emulator import library_path, parse_emulated
from moetune.engine.model_handle import ModelHandle
from moetune.engine.native_log import NativeLog

# Above the 32 tokens from which llama.cpp computes RAM weights on a device.
PROMPT_TOKENS = 40
DECODED_TOKENS = 12


def main() -> None:
    """Prompt, then token by token."""
    asked = json.loads(sys.argv[1])
    config = TypeAdapter(EngineConfig).validate_python(asked["config"])
    if asked["emulate"]:
        library.load_backend(library_path(), parse_emulated(asked["emulate"]).environment())
    cache = None
    if config.cache is not None:
        cache = library.HotCache(config.device or "CPU", "EMUHOST" if asked["emulate"] else None)
    words = io.StringIO()
    model = ModelHandle(Path(asked["model"]), NativeLog(words), config)
    model.open_context(config)
    model.set_threads(config.n_threads, config.batch_threads)
    if cache is not None and config.cache is not None:
        cache.apply(config.cache)
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, 256, PROMPT_TOKENS + DECODED_TOKENS)]
    rows = [_logits(model, tokens[:PROMPT_TOKENS]), *(_logits(model, [token]) for token in tokens[PROMPT_TOKENS:])]
    np.save(asked["logits"], np.stack(rows))
    layers = cache.layers() if cache is not None else []
    found = {
        "log": words.getvalue(),
        "threads": model.threads,
        "mapped": asked["model"] in Path("/proc/self/maps").read_text(),
        "used": {name: library.device_used_bytes(name) for name in (config.device, *config.more_devices) if name},
        "slots": {layer.layer: layer.n_slots for layer in layers},
        "hits": sum(layer.counters.hits for layer in layers),
        "ahead": sum(layer.counters.ahead_steps for layer in layers),
        "streamed": sum(layer.counters.streamed_steps for layer in layers),
        "repacked": sum(layer.counters.repacked_bytes for layer in layers),
        "on_device": sum(layer.counters.device_steps for layer in layers),
    }
    model.close()
    print(json.dumps(found))


def _logits(model: ModelHandle, tokens: list[int]) -> np.ndarray:
    model.decode(tokens)
    pointer = llama.llama_get_logits_ith(model._context, -1)
    return np.ctypeslib.as_array(pointer, shape=(model.n_vocab,)).copy()


if __name__ == "__main__":
    main()
