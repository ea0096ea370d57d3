"""The text that quality is measured on, as tokens: in chunks, and behind a long context."""

import hashlib
from dataclasses import dataclass

from moetune.engine.measurement import Scorer
from moetune.engine.passage import Passage, most_scored
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.workload import PRESETS, Workload, load_workload

CHUNK_TOKENS = 512  # what llama-perplexity takes where nobody says otherwise
# About 4,000 scored tokens: the standard error of a mean KLD is then a few per cent of it.
MOST_CHUNKS = 16
_MOST_AT_DEPTH = 512


@dataclass(frozen=True)
class QualityText:
    """own: the user's or the workload's tokens. fill: tokens of shipped texts where those are few."""

    own: tuple[int, ...]
    fill: tuple[int, ...]
    n_ctx: int
    n_vocab: int

    @property
    def n_chunk(self) -> int:
        """Tokens of a chunk, no more than the context asked for holds."""
        return min(CHUNK_TOKENS, self.n_ctx)

    @property
    def in_chunks(self) -> Passage:
        """The first chunks, the second half of each scored, as llama-perplexity does."""
        tokens = (self.own + self.fill)[: MOST_CHUNKS * self.n_chunk]
        return Passage(tokens, self.n_chunk, min(self.n_chunk - 1 - self.n_chunk // 2, most_scored(self.n_vocab)))

    @property
    def at_depth(self) -> Passage | None:
        """The text's end behind as much of the text as fills the context; None where that is no more than a chunk.

        What is scored occurs once. What stands before it is repeated where the text is shorter than the context.
        """
        stream = self.fill + self.own
        n_scored = min(_MOST_AT_DEPTH, self.n_ctx // 4, len(stream) // 4, most_scored(self.n_vocab))
        if self.n_ctx <= self.n_chunk or n_scored < 1:
            return None
        body, tail = stream[:-n_scored], stream[-n_scored:]
        n_before = self.n_ctx - n_scored
        before = (body * -(-n_before // len(body)))[-n_before:]
        return Passage(before + tail, self.n_ctx, n_scored)

    @property
    def digest(self) -> str:
        """Of all tokens that either way uses."""
        used = repr((self.in_chunks, self.at_depth))
        return hashlib.sha256(used.encode()).hexdigest()[:16]


def quality_text(given: str | None, workload: Workload, n_ctx: int, n_vocab: int, scorer: Scorer) -> QualityText:
    """Tokens of the text given, else of the workload's; shipped texts fill up a workload that has few.

    Raises MoetuneError (USAGE) when the text given is shorter than a chunk.
    """
    n_chunk = min(CHUNK_TOKENS, n_ctx)
    if given is not None:
        own = scorer.tokenize(given)
        if len(own) < n_chunk:
            raise MoetuneError(
                f"The quality text has {len(own):,} tokens; one chunk takes {n_chunk:,}.",
                f"Give a longer --quality-text; {MOST_CHUNKS * n_chunk:,} tokens are used where there are so many.",
                ExitCode.USAGE,
            )
        return QualityText(own, (), n_ctx, n_vocab)
    own = _tokens(workload.texts, scorer)
    fill: tuple[int, ...] = ()
    if len(own) < MOST_CHUNKS * n_chunk:
        others = [load_workload(name) for name in PRESETS if name != workload.name]
        fill = tuple(token for other in others for token in _tokens(other.texts, scorer))
    if len(own) + len(fill) < n_chunk:
        raise MoetuneError(
            f"The texts of the workload {workload.name!r} have {len(own):,} tokens; one chunk takes {n_chunk:,}.",
            "Give a text to measure quality on (--quality-text), or use --quality any.",
            ExitCode.USAGE,
        )
    return QualityText(own, fill, n_ctx, n_vocab)


def _tokens(texts: tuple[str, ...], scorer: Scorer) -> tuple[int, ...]:
    return tuple(token for text in texts for token in scorer.tokenize(text))
