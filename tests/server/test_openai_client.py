"""OpenAI's own client package against a real server: texts, streams, limits, sampling, cancellation."""

import asyncio
import http.client
import json
import time

import openai
import pytest
from serving import LIMIT_S, PROMPTS, Server

MODEL = "demo"
N_TOKENS = 48
# So many that a client on a busy machine has left long before the last.
MANY_TOKENS = 200


def complete(server: Server, prompt: str, **options: object) -> openai.types.Completion:
    return server.client().completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, **options})  # type: ignore


async def streamed(client: openai.AsyncOpenAI, prompt: str, leave_after: int | None = None) -> str:
    """A greedy text as a streaming client sees it; `leave_after` so many pieces it hangs up."""
    text, n_pieces = "", 0
    n_tokens = N_TOKENS if leave_after is None else MANY_TOKENS
    stream = await client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=n_tokens, temperature=0, stream=True
    )
    async with stream:
        async for chunk in stream:
            text += chunk.choices[0].text
            n_pieces += 1
            if n_pieces == leave_after:
                break
    return text


def test_every_concurrent_stream_reads_like_a_client_alone(server: Server) -> None:
    """Twelve at once on four sequences, four of whom leave early: the others read what `moetune run` writes."""
    alone = server.alone(PROMPTS, N_TOKENS)

    async def all_at_once() -> list[str]:
        async with server.async_client() as client:
            leaving = [streamed(client, f"{prompt}# {prompt}", leave_after=3) for prompt in PROMPTS[:4]]
            staying = [streamed(client, prompt) for prompt in PROMPTS]
            return (await asyncio.gather(*leaving, *staying))[4:]

    before = server.settled()
    texts = asyncio.run(all_at_once())
    assert dict(zip(PROMPTS, texts, strict=True)) == alone
    after = server.settled()
    assert after["moetune_kv_cells_used"] == 0
    assert after["moetune_requests_cancelled_total"] - before["moetune_requests_cancelled_total"] == 4


def test_a_chat_is_put_into_the_models_own_template(server: Server) -> None:
    """The same words as `moetune run --chat` says."""
    alone = server.alone(PROMPTS[:1], N_TOKENS, chat=True)
    message = {"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]}
    chat = server.client().chat.completions.create(
        model=MODEL, messages=[message], max_completion_tokens=N_TOKENS, temperature=0
    )
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == alone[PROMPTS[0]]
    assert chat.choices[0].finish_reason in ("stop", "length")


def test_a_streamed_chat_is_the_same_chat(server: Server) -> None:
    """Role first, then text, then why it ends, then the tokens if they are wanted."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": PROMPTS[1]}], "max_tokens": 20, "temperature": 0}
    whole = server.client().chat.completions.create(**asked)
    chunks = list(server.client().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    """Wherever tokens begin and end."""
    whole = complete(server, PROMPTS[0], max_tokens=N_TOKENS).choices[0].text
    stop = whole[21:27]
    stopped = complete(server, PROMPTS[0], max_tokens=N_TOKENS, stop=[stop, "never said"])
    assert stopped.choices[0].text == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_sampled_text(server: Server) -> None:
    """The same seed gives the same text; four seeds do not all."""
    texts = [
        complete(server, PROMPTS[7], max_tokens=24, temperature=1.5, top_p=0.99, seed=seed).choices[0].text
        for seed in (1, 1, 2, 3, 4)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 2


def test_a_penalty_makes_repetition_rarer(server: Server) -> None:
    """Greedy text of so small a model repeats itself."""
    plain = complete(server, "the", max_tokens=80).choices[0].text.split()
    varied = complete(server, "the", max_tokens=80, frequency_penalty=2.0).choices[0].text.split()
    assert len(set(varied)) / len(varied) > len(set(plain)) / len(plain)


def test_lengths_are_those_asked_for(server: Server) -> None:
    """`max_tokens`, OpenAI's default of 16, and the context where nothing else ends a chat."""
    five = complete(server, PROMPTS[0], max_tokens=5)
    assert five.usage is not None
    assert (five.usage.completion_tokens, five.choices[0].finish_reason) == (5, "length")
    by_default = complete(server, PROMPTS[0])
    assert by_default.usage is not None
    assert by_default.usage.completion_tokens == 16
    full = complete(server, "import os\n" * 30, max_tokens=100_000)
    assert full.usage is not None
    assert full.choices[0].finish_reason == "length"
    assert full.usage.total_tokens == server.config.n_ctx


def test_the_model_is_listed_with_its_context(server: Server) -> None:
    """By the name of its file."""
    client = server.client()
    (card,) = client.models.list().data
    assert card.id == client.models.retrieve(MODEL).id == MODEL
    assert card.model_extra is not None
    assert card.model_extra["context_length"] == server.config.n_ctx
    assert card.model_extra["emulated"] == (server.emulate is not None)


def test_a_beginning_that_comes_again_is_not_computed_again(server: Server) -> None:
    """The text stays the same, and the usage tells how much was kept."""
    prompt = "".join(PROMPTS) * 4
    first, again = (complete(server, prompt, max_tokens=N_TOKENS) for _ in range(2))
    assert first.choices[0].text == again.choices[0].text
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    kept = again.usage.prompt_tokens_details.cached_tokens
    assert kept is not None
    assert 0 < kept < again.usage.prompt_tokens
    assert kept % server.config.n_ubatch == 0


def test_metrics_add_up(server: Server) -> None:
    """Tokens are those of the usage; the cache's counters and the KV cells move."""
    before = server.settled()
    usage = complete(server, "grep - print lines that match", max_tokens=30).usage
    after = server.settled()
    assert usage is not None

    def grown(metric: str) -> float:
        return after[metric] - before[metric]

    assert grown("moetune_generated_tokens_total") == usage.completion_tokens
    assert grown("moetune_prompt_tokens_total") <= usage.prompt_tokens
    assert grown("moetune_requests_total{/v1/completions,200}") == 1
    assert grown("moetune_time_to_first_text_seconds_count") == grown("moetune_request_seconds_count") == 1
    # Where it does not pay, it has switched itself off.
    is_off = after["moetune_cache_layers_off"] > 0
    assert is_off or grown("moetune_cache_hits_total") + grown("moetune_cache_misses_total") > 0
    assert after["moetune_cache_hits_total"] > 0
    assert after["moetune_cache_promotions_total"] > 0
    assert after["moetune_cache_link_bytes_total{promotion}"] > 0
    assert after["moetune_cache_slots"] > 0
    assert after["moetune_kv_cells"] == 4 * server.config.n_ctx
    assert after["moetune_engine_up"] == 1


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_frees_its_sequence(server: Server, stream: bool) -> None:
    """Long before its text would have ended."""
    before = server.settled()
    body = {"model": MODEL, "prompt": "import os", "max_tokens": 100_000, "temperature": 0, "stream": stream}
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=LIMIT_S)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    connection.close()
    deadline = time.monotonic() + LIMIT_S
    cancelled = "moetune_requests_cancelled_total"
    while server.metrics()[cancelled] == before[cancelled] and time.monotonic() < deadline:
        time.sleep(0.05)
    after = server.settled()
    assert after[cancelled] == before[cancelled] + 1
    assert after["moetune_kv_cells_used"] == 0
    assert after["moetune_generated_tokens_total"] - before["moetune_generated_tokens_total"] < 400
