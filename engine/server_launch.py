"""A configuration as a start of stock `llama-server`: its flags, the plugin's environment, and what neither can say."""

from dataclasses import dataclass, fields
from pathlib import Path

from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.emulator import EmulatedMachine
from moetune.engine.emulator import library_path as emulator_path
from moetune.engine.library import cache_settings, plugin_path
from moetune.engine.model_handle import BATCH_TOKENS
from moetune.engine.runner import EMULATED_HOST

# Makes a program with built-in backends look for the plugin: it names the CPU for no tensor at all.
LOOK_FOR_PLUGIN = ("LLAMA_ARG_OVERRIDE_TENSOR", "^$=CPU")
# ggml also loads backends that lie in the current folder under the name of one that it knows.
EMULATOR_LINK = "libggml-vulkan.so"
# What the plugin does unless told otherwise; outside a measurement its guard is on.
_PLUGIN_DEFAULTS = cache_settings(CacheKnobs(slots=0, guard=True))


@dataclass(frozen=True)
class Setting:
    """One of llama-server's. variable: None where only the flag exists. value: None for a flag that has none;
    `said` is then what the variable must be.
    """

    flag: str
    variable: str | None
    value: str | None
    said: str = "1"


@dataclass(frozen=True)
class Lost:
    """A field of the configuration that is not carried over, by its path, and the value it had."""

    field: str
    value: str


@dataclass(frozen=True)
class ServerLaunch:
    """A start of `program`. environment: of the plugin and the emulator, not llama-server's own variables.

    link: a library that must lie in the current folder as `EMULATOR_LINK`, None where nothing is emulated.
    """

    program: str
    model: Path
    settings: tuple[Setting, ...]
    environment: tuple[tuple[str, str], ...]
    lost: tuple[Lost, ...]
    link: Path | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """Everything after the program's name."""
        return tuple(word for s in self.settings for word in (s.flag, s.value) if word is not None)

    @property
    def variables(self) -> tuple[tuple[str, str], ...]:
        """The same in llama-server's own variables, as far as it has them, after the environment."""
        own = ((s.variable, s.said if s.value is None else s.value) for s in self.settings if s.variable)
        return (*self.environment, *own)

    @property
    def only_flags(self) -> tuple[Setting, ...]:
        """What `variables` cannot say."""
        return tuple(s for s in self.settings if s.variable is None)


def server_launch(
    config: EngineConfig,
    model: Path,
    *,
    program: str = "llama-server",
    emulated: EmulatedMachine | None = None,
    stock: bool = False,
) -> ServerLaunch:
    """How llama-server does what the engine does with `config`. stock: without the plugin, so without the cache.

    The cache's guard is on, as in `moetune run`.
    """
    plugin = config.cache if config.device is not None and not stock else None
    # Without a device llama-server would not even look for the emulator.
    emulated = emulated if config.device is not None else None
    environment = (*_plugin(config, plugin, emulated), *(emulated.environment().items() if emulated else ()))
    return ServerLaunch(
        program=program,
        model=model,
        settings=(Setting("-m", "LLAMA_ARG_MODEL", str(model)), *_placement(config), *_context(config)),
        environment=environment,
        lost=lost_cache(config.cache) if plugin is None else (),
        link=emulator_path() if emulated is not None else None,
    )


def lost_cache(cache: CacheKnobs | None) -> tuple[Lost, ...]:
    """Every knob, for a start without the plugin."""
    if cache is None:
        return ()
    return tuple(Lost(f"cache.{field.name}", str(getattr(cache, field.name))) for field in fields(cache))


def _placement(config: EngineConfig) -> tuple[Setting, ...]:
    names = (config.device, *config.more_devices) if config.device not in (None, "CPU") else ()
    found = [
        Setting("--device", "LLAMA_ARG_DEVICE", ",".join(map(str, names)) or "none"),
        Setting("-ngl", "LLAMA_ARG_N_GPU_LAYERS", str(config.gpu_layers if names else 0)),
        # Everything is placed by hand.
        Setting("-fit", "LLAMA_ARG_FIT", "off"),
        Setting("-lm", "LLAMA_ARG_LOAD_MODE", config.load_mode.value),
    ]
    if names and config.ram_expert_layers:
        found.append(Setting("-ncmoe", "LLAMA_ARG_N_CPU_MOE", str(config.ram_expert_layers)))
    if names and not config.gpu_layers:
        found.append(Setting("-nkvo", "LLAMA_ARG_KV_OFFLOAD", None, said="0"))
    if len(names) > 1:
        found.append(Setting("-sm", "LLAMA_ARG_SPLIT_MODE", config.split_mode.value))
    if names and config.tensor_split:
        found.append(Setting("-ts", "LLAMA_ARG_TENSOR_SPLIT", ",".join(map(str, config.tensor_split))))
    if not config.repack:
        found.append(Setting("--no-repack", "LLAMA_ARG_REPACK", None, said="0"))
    if config.no_host:
        found.append(Setting("--no-host", "LLAMA_ARG_NO_HOST", None))
    return tuple(found)


def _context(config: EngineConfig) -> tuple[Setting, ...]:
    n_batch = min(config.n_ctx, BATCH_TOKENS)
    found = [
        Setting("-c", "LLAMA_ARG_CTX_SIZE", str(config.n_ctx)),
        # One request at a time is what was measured.
        Setting("-np", "LLAMA_ARG_N_PARALLEL", "1"),
        Setting("-b", "LLAMA_ARG_BATCH", str(n_batch)),
        Setting("-ub", "LLAMA_ARG_UBATCH", str(min(config.n_ubatch, n_batch))),
        Setting("-ctk", "LLAMA_ARG_CACHE_TYPE_K", config.type_k.value),
        Setting("-ctv", "LLAMA_ARG_CACHE_TYPE_V", config.type_v.value),
        Setting("-fa", "LLAMA_ARG_FLASH_ATTN", config.flash_attn.value),
        Setting("-t", "LLAMA_ARG_THREADS", str(config.n_threads)),
    ]
    if config.batch_threads != config.n_threads:
        found.append(Setting("-tb", None, str(config.batch_threads)))
    return tuple(found)


def _plugin(
    config: EngineConfig, cache: CacheKnobs | None, emulated: EmulatedMachine | None
) -> tuple[tuple[str, str], ...]:
    """What the plugin reads; settings at its defaults are left out."""
    if cache is None:
        return ()
    told = {"device": str(config.device), "cold_device": EMULATED_HOST if emulated is not None else ""}
    # Off, it leaves experts alone; measured was that it holds them.
    told |= {} if cache.on else {"hold": "1"}
    wanted = cache_settings(cache) | {"guard": _PLUGIN_DEFAULTS["guard"]}
    told |= {key: value for key, value in wanted.items() if value != _PLUGIN_DEFAULTS[key]}
    settings = ((f"HOTCACHE_{key.upper()}", value) for key, value in told.items() if value)
    # `--device` with a device makes the program look by itself.
    look = (LOOK_FOR_PLUGIN,) if config.device == "CPU" else ()
    return (("GGML_BACKEND_PATH", str(plugin_path())), *look, *settings)
