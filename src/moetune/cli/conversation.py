"""What was said so far, kept within the model's context; and what it took."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from moetune.engine.generation import ChatMessage, GenerationRequest, GenerationStats
from moetune.engine.measurement import CacheCounters
from moetune.errors import ExitCode, MoetuneError

# What follows a dropped message is computed anew, so that much of the room for prompts is freed for the next ones too.
_KEPT_SHARE = 3 / 4


@dataclass(frozen=True)
class Fitted:
    """A request that leaves room for its reply. n_dropped: messages left out of its history, the oldest."""

    request: GenerationRequest
    n_dropped: int


def fit(request: GenerationRequest, n_ctx: int, count: Callable[[GenerationRequest], int]) -> Fitted:
    """As much of the history as prompt and reply leave room for; `count` says how many tokens a prompt has.

    Raises MoetuneError (USAGE) when the message alone is too long.
    """
    room = n_ctx - request.max_tokens
    n_tokens, fitted = count(request), request
    if n_tokens > room:
        while fitted.history and n_tokens > room * _KEPT_SHARE:
            fitted = replace(fitted, history=fitted.history[2:])  # a message and its answer
            n_tokens = count(fitted)
    if n_tokens > room:
        raise MoetuneError(
            f"That message has {n_tokens:,} tokens; the context of {n_ctx:,} has room for {room:,} and the answer.",
            "Send less at once, or run with a larger --ctx or a smaller --max-tokens.",
            ExitCode.USAGE,
        )
    return Fitted(fitted, len(request.history) - len(fitted.history))


class Conversation:
    """A chat so far: its messages in turn, and the statistics of every answer. `settings` is each request's form."""

    def __init__(self, settings: GenerationRequest, n_ctx: int) -> None:
        self._settings = settings
        self._n_ctx = n_ctx
        self._answers: list[GenerationStats] = []
        self.n_dropped = 0

    def next(self, text: str, count: Callable[[GenerationRequest], int]) -> Fitted:
        """The request for an answer to `text`; what had to be dropped for it is forgotten. Raises as `fit` does."""
        fitted = fit(replace(self._settings, prompt=text), self._n_ctx, count)
        self._settings = replace(self._settings, history=fitted.request.history)
        self.n_dropped += fitted.n_dropped
        return fitted

    def answered(self, text: str, answer: str, stats: GenerationStats) -> None:
        """Remember an exchange; an answer without text leaves no trace but in the statistics."""
        self._answers.append(stats)
        if answer:
            said = (ChatMessage("user", text), ChatMessage("assistant", answer))
            self._settings = replace(self._settings, history=(*self._settings.history, *said))

    def clear(self) -> None:
        """Forget what was said; the statistics stay."""
        self._settings = replace(self._settings, history=())

    def stats(self) -> Iterator[tuple[str, str]]:
        """Name and value of every figure of the whole chat."""
        answers = self._answers
        n_read, n_said = sum(a.n_prompt for a in answers), sum(a.n_reply for a in answers)
        used = answers[-1].n_kept + answers[-1].n_prompt + answers[-1].n_reply if answers else 0
        yield "messages", f"{len(self._settings.history)} remembered, {self.n_dropped} dropped"
        yield "context", f"{used if self._settings.history else 0:,} of {self._n_ctx:,} tokens"
        yield (
            "prompts",
            f"{n_read:,} tokens read{_at(n_read, sum(a.prompt_s for a in answers))}, "
            + (f"{sum(a.n_kept for a in answers):,} still there from before"),
        )
        yield "answers", f"{n_said:,} tokens{_at(n_said, sum(a.reply_s for a in answers))}"
        counted = [a.counters for a in answers if a.counters is not None]
        if counted:
            yield from _cache(counted)


def _cache(counted: list[CacheCounters]) -> Iterator[tuple[str, str]]:
    hits = sum(c.hits for c in counted)
    pairs = hits + sum(c.misses for c in counted)
    moved = sum(c.bytes_moved for c in counted) / (1 << 20)
    rate = f"{hits / pairs:.0%} of {pairs:,} routed pairs" if pairs else "nothing was routed"
    yield "hit rate", rate
    yield "promotions", f"{sum(c.promotions for c in counted):,}, {moved:,.1f} MiB over the link"
    yield (
        "time",
        f"hot {_s(c.hot_s for c in counted)}, cold {_s(c.cold_s for c in counted)}, "
        + (f"waiting {_s(c.wait_s for c in counted)}, stalled {_s(c.stall_s for c in counted)}"),
    )


def _s(seconds: Iterator[float]) -> str:
    return f"{sum(seconds):.2f} s"


def _at(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:,.1f} tok/s" if tokens and seconds > 0 else ""
