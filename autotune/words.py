"""A configuration in few words, for people."""

from moetune.engine.config import EngineConfig, KvType


def describe(config: EngineConfig, n_layers: int) -> str:
    """What sets this configuration apart.

    "12 slots/4 tok ×1.25 +2": 12 slots a layer, a rebalance every 4 tokens, hysteresis 1.25, at most 2 promotions.
    """
    parts = [_engine(config)]
    if config.gpu_layers:
        if config.gpu_layers <= n_layers:
            parts.append(f"{config.gpu_layers} of {n_layers + 1} layers on {config.device}")
        elif config.ram_expert_layers == 0:
            parts.append(f"all on {config.device}")
        elif config.ram_expert_layers < n_layers:
            parts.append(f"experts of {_count(config.ram_expert_layers, 'layer')} in RAM")
    parts += [_count(config.n_threads, "thread"), f"ubatch {config.n_ubatch}"]
    if (config.type_k, config.type_v) != (KvType.F16, KvType.F16):
        same = config.type_k == config.type_v
        parts.append(f"KV {config.type_k}" if same else f"K {config.type_k}, V {config.type_v}")
    if config.cache is None and not config.repack:
        parts.append("no repack")
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _engine(config: EngineConfig) -> str:
    cache = config.cache
    if cache is None:
        return "stock"
    if cache.slots == 0:
        return "cache off"
    return f"{cache.slots} slots/{cache.interval_tokens} tok ×{cache.hysteresis:g} +{cache.promotions}"
