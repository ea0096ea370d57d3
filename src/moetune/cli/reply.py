"""One reply of the model: streamed, or as one JSON object; and its speeds in a line."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain

from moetune.cli.output import listed, note, show, stream
from moetune.cli.progress import waiting
from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats
from moetune.engine.runner import EngineRunner

# A generation ends by itself at its limit of tokens; this only frees the terminal from an engine that hangs.
TIME_LIMIT_S = 24 * 3600.0


def stream_reply(runner: EngineRunner, config: EngineConfig, request: GenerationRequest) -> tuple[str, GenerationStats]:
    """Show the text as it comes, ending its last line; the text and the statistics. Raises MoetuneError."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        stream(text)

    try:
        stats = _received(runner, config, request, say)
    finally:
        # Also after Ctrl-C: the shell's prompt begins on a line of its own.
        if said and not said[-1].endswith("\n"):
            stream("\n")
    return "".join(said), stats


def print_reply(runner: EngineRunner, config: EngineConfig, request: GenerationRequest, *, emulated: bool) -> None:
    """The text on standard output as it comes, then its figures on standard error."""
    _, stats = stream_reply(runner, config, request)
    note(figures(stats, emulated=emulated))


def print_json(
    runner: EngineRunner, config: EngineConfig, request: GenerationRequest, words: str, *, emulated: bool
) -> None:
    """One object with text and statistics; `words` describe the configuration. Seconds, tokens, tokens a second."""
    said: list[str] = []
    stats = _received(runner, config, request, said.append)
    counters = stats.counters
    found = {
        "text": "".join(said),
        "stopped": stats.stopped,
        "prompt_tokens": stats.n_prompt,
        "prompt_s": stats.prompt_s,
        "prompt_tps": _rate(stats.n_prompt, stats.prompt_s),
        "reply_tokens": stats.n_reply,
        "reply_s": stats.reply_s,
        "reply_tps": _rate(stats.n_reply, stats.reply_s),
        "hit_rate": counters.hit_rate if counters is not None else None,
        "cache": asdict(counters) if counters is not None else None,
        "configuration": words,
        "emulated": emulated,
    }
    show(json.dumps(found, indent=2))


def figures(stats: GenerationStats, *, emulated: bool) -> str:
    """What a reply took."""
    kept = f" after {stats.n_kept:,} kept" if stats.n_kept else ""
    prompt, reply = _speed(stats.n_prompt, stats.prompt_s), _speed(stats.n_reply, stats.reply_s)
    parts = [f"prompt {prompt}{kept}", f"reply {reply}"]
    hit_rate = stats.counters.hit_rate if stats.counters else None
    if hit_rate is not None:
        parts.append(f"hit rate {hit_rate:.0%}")
    if stats.counters is not None and stats.counters.layers_off:
        parts.append(f"the cache did not pay in {stats.counters.layers_off} layers and is off there")
    if stats.stopped in _STOPPED:
        parts.append(_STOPPED[stats.stopped])
    if emulated:
        parts[-1] += " (emulated)"
    return listed(parts)


_STOPPED = {"limit": "stopped at the limit of tokens", "asked": "stopped by you"}


def _received(
    runner: EngineRunner, config: EngineConfig, request: GenerationRequest, say: Callable[[str], object]
) -> GenerationStats:
    """The statistics, after `say` was given every piece of text that is not empty."""
    items = runner.generate(config, request, time_limit_s=TIME_LIMIT_S)
    with waiting("loading the model, reading the prompt"):
        first = next(items)
    for item in chain([first], items):
        if isinstance(item, GenerationStats):
            stats = item
        elif item.text:
            say(item.text)
    return stats


def _speed(tokens: int, seconds: float) -> str:
    rate = _rate(tokens, seconds)
    return f"{tokens} tokens in {seconds:.2f} s" + (f" ({rate:.1f} tok/s)" if rate is not None else "")


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None
