"""What of a chat is sent along again, and what is dropped when the context is full."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetune.cli.conversation import Conversation, fit
from moetune.engine.generation import ChatMessage, GenerationRequest, GenerationStats
from moetune.errors import ExitCode, MoetuneError

SETTINGS = GenerationRequest("", max_tokens=100)
STATS = GenerationStats(n_prompt=10, prompt_s=0.5, n_reply=20, reply_s=2.0, stopped="end", counters=None, n_kept=30)


def n_words(request: GenerationRequest) -> int:
    """A tokenizer good enough for arithmetic."""
    return sum(len(message.content.split()) for message in request.history) + len(request.prompt.split())


def exchange(n_tokens: int) -> tuple[ChatMessage, ChatMessage]:
    return ChatMessage("user", "q " * (n_tokens // 2)), ChatMessage("assistant", "a " * (n_tokens - n_tokens // 2))


def test_what_fits_is_sent_as_it_is() -> None:
    """Up to the last token that prompt and answer leave."""
    full = replace(SETTINGS, prompt="w " * 100, history=exchange(200))
    assert fit(full, 400, n_words).n_dropped == 0
    assert fit(full, 399, n_words).n_dropped == 2


@given(st.lists(st.integers(2, 120), max_size=12), st.integers(1, 300), st.integers(150, 900))
def test_the_newest_messages_stay_and_the_answer_has_room(sizes: list[int], n_prompt: int, n_ctx: int) -> None:
    """Whatever was said: whole exchanges go, the oldest first, and no more than must once some have to."""
    history = tuple(message for size in sizes for message in exchange(size))
    asked = replace(SETTINGS, prompt="w " * n_prompt, history=history)
    room = n_ctx - asked.max_tokens
    if n_prompt > room:
        with pytest.raises(MoetuneError, match=f"{room:,}") as refused:
            fit(asked, n_ctx, n_words)
        assert refused.value.code is ExitCode.USAGE
        return
    fitted = fit(asked, n_ctx, n_words)
    kept = fitted.request.history
    assert n_words(fitted.request) <= room
    assert kept == history[len(history) - len(kept) :]
    assert (len(kept) % 2, fitted.n_dropped) == (0, len(history) - len(kept))
    one_more = replace(asked, history=history[max(0, len(history) - len(kept) - 2) :])
    assert kept == history or n_words(one_more) > room * 3 / 4


def test_room_is_made_for_more_than_one_message() -> None:
    """A context that overflowed does not overflow again with the very next words: reading it anew costs time."""
    talk = Conversation(SETTINGS, 500)
    dropped = []
    for _ in range(30):
        fitted = talk.next("w " * 20, n_words)
        dropped.append(fitted.n_dropped)
        talk.answered("w " * 20, "a " * 20, STATS)
    assert sum(dropped) == talk.n_dropped > 0
    assert sum(n > 0 for n in dropped) <= len(dropped) / 2
    assert not any(a and b for a, b in pairwise(dropped))


def test_an_answer_without_text_is_not_remembered() -> None:
    """Stopped before its first word: the next prompt is what it would have been."""
    talk = Conversation(SETTINGS, 500)
    talk.answered("hi", "", STATS)
    assert talk.next("again", n_words).request.history == ()


def test_clearing_forgets_what_was_said_and_keeps_the_figures() -> None:
    """Only the messages go."""
    talk = Conversation(SETTINGS, 500)
    talk.answered("hi", "hello", STATS)
    assert [m.content for m in talk.next("and?", n_words).request.history] == ["hi", "hello"]
    talk.clear()
    assert talk.next("and?", n_words).request.history == ()
    figures = dict(talk.stats())
    assert figures["messages"].startswith("0 remembered")
    assert figures["answers"] == "20 tokens at 10.0 tok/s"
    assert figures["prompts"] == "10 tokens read at 20.0 tok/s, 30 still there from before"
