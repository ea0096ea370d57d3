"""A configuration in few words, for people."""

from collections.abc import Iterator

from moetune.engine.config import (
    Ahead,
    CacheKnobs,
    EngineConfig,
    FlashAttention,
    KvType,
    LoadMode,
    Policy,
    PromptWay,
    SplitMode,
)

_MIB = 1 << 20


def number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def one_line(text: str) -> str:
    """Printable, at most 1,000 characters: names come from files that anyone may have written."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]


def describe(config: EngineConfig, n_layers: int) -> str:
    """What sets this configuration apart; what is as usual is left out.

    "12 slots/4 tok ×1.25 +2": 12 slots a layer, a rebalance every 4 tokens, hysteresis 1.25, at most 2 promotions.
    """
    return ", ".join([*_engine(config), *_placement(config, n_layers), *_computing(config), *_weights(config)])


def _engine(config: EngineConfig) -> Iterator[str]:
    cache = config.cache
    if cache is None:
        yield "stock"
    elif not cache.on:
        yield "cache off"
    else:
        yield _slots(cache)
        yield from _cache_extras(cache)


def _slots(cache: CacheKnobs) -> str:
    held = f"{cache.slots} slots" if cache.slots else f"{cache.budget_bytes / _MIB:,.1f} MiB of slots by {cache.spread}"
    if cache.policy is Policy.STATIC:
        return f"{held}, static"
    policy = "" if cache.policy is Policy.HEAT else f" {cache.policy}"
    return f"{held}{policy}/{cache.interval_tokens} tok ×{cache.hysteresis:g} +{cache.promotions}"


def _cache_extras(cache: CacheKnobs) -> Iterator[str]:
    if cache.reserve_bytes is not None:
        yield f"reserve {cache.reserve_bytes / _MIB:,.1f} MiB"
    if cache.prefill is not PromptWay.AUTO:
        yield f"prefill {cache.prefill}"
    if cache.ahead is not Ahead.AUTO:
        yield "ahead" if cache.ahead is Ahead.ALWAYS else "never ahead"
    if cache.repack:
        yield "misses packed"


def _placement(config: EngineConfig, n_layers: int) -> Iterator[str]:
    devices = " and ".join(name for name in (config.device, *config.more_devices) if name is not None)
    if not config.gpu_layers:
        return
    if config.gpu_layers <= n_layers:
        yield f"{config.gpu_layers} of {n_layers + 1} layers on {devices}"
    elif config.ram_expert_layers == 0:
        yield f"all on {devices}"
    elif config.ram_expert_layers < n_layers:
        yield f"experts of {_count(config.ram_expert_layers, 'layer')} in RAM"
    if config.more_devices:
        names = (str(config.device), *config.more_devices)
        shares = zip(names, config.tensor_split, strict=False)
        yield "split " + " ".join(f"{name}:{layers}" for name, layers in shares) if config.tensor_split else "split"
    if config.split_mode is not SplitMode.LAYER:
        yield f"split by {config.split_mode}"


def _computing(config: EngineConfig) -> Iterator[str]:
    threads = _count(config.n_threads, "thread")
    yield threads if config.n_threads_batch is None else f"{threads} ({config.n_threads_batch} for prompts)"
    yield f"ubatch {config.n_ubatch}"
    if (config.type_k, config.type_v) != (KvType.F16, KvType.F16):
        same = config.type_k == config.type_v
        yield f"KV {config.type_k}" if same else f"K {config.type_k}, V {config.type_v}"
    if config.flash_attn is not FlashAttention.AUTO:
        yield f"flash attention {config.flash_attn}"


def _weights(config: EngineConfig) -> Iterator[str]:
    """How weights lie in RAM."""
    if config.load_mode is not LoadMode.MMAP:
        yield "read, not mapped" if config.load_mode is LoadMode.NONE else f"load {config.load_mode}"
    if config.cache is None and config.device is None and not config.repack:
        yield "no repack"
    if config.no_host:
        yield "packed for the CPU" if config.repack else "not pinned"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
