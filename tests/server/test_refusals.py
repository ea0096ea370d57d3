"""What is malformed, too large, too much or not allowed gets the right status, in OpenAI's error shape."""

import asyncio
import http.client
import json
import socket
from pathlib import Path

import openai
import pytest
from serving import LIMIT_S, PROMPTS, Server, serving

JSON = {"Content-Type": "application/json"}
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
GOOD = {"model": "demo", "prompt": "import os", "max_tokens": 4}
HELLO = [{"role": "user", "content": "Hello"}]


def ask(
    server: Server, path: str, body: object, headers: dict[str, str] = JSON, method: str = "POST"
) -> tuple[int, dict[str, str]]:
    """Status and the error that came with it; `body` is sent as JSON unless it is bytes or chunks."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=LIMIT_S)
    raw = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, raw, headers)  # type: ignore[arg-type]
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    if answer.status >= 400:
        assert set(said["error"]) == {"message", "type", "param", "code"}
        assert said["error"]["message"]
    return answer.status, said.get("error", {})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, b"", None),
        (COMPLETIONS, b"{", None),
        (COMPLETIONS, b"[]", None),
        (COMPLETIONS, b"null", None),
        (COMPLETIONS, b"[" * 5000, None),
        (COMPLETIONS, b'{"model": "demo", "prompt": "\xff"}', None),
        (COMPLETIONS, b'{"model": "demo", "prompt": "\\ud800"}', None),
        (COMPLETIONS, {"model": "demo"}, "prompt"),
        (COMPLETIONS, {"prompt": "x"}, "model"),
        (COMPLETIONS, {**GOOD, "prompt": ""}, None),
        (COMPLETIONS, {**GOOD, "prompt": ["a", "b"]}, "prompt"),
        (COMPLETIONS, {**GOOD, "prompt": [1, 2]}, "prompt"),
        (COMPLETIONS, {**GOOD, "max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {**GOOD, "max_tokens": -1}, "max_tokens"),
        (COMPLETIONS, {**GOOD, "max_tokens": "many"}, "max_tokens"),
        (COMPLETIONS, {**GOOD, "max_tokens": "4"}, "max_tokens"),
        (COMPLETIONS, {**GOOD, "max_tokens": 4.5}, "max_tokens"),
        (COMPLETIONS, {**GOOD, "max_tokens": True}, "max_tokens"),
        (COMPLETIONS, {**GOOD, "stream": "yes"}, "stream"),
        (COMPLETIONS, {**GOOD, "stream": 1}, "stream"),
        (COMPLETIONS, {**GOOD, "stream_options": {"include_usage": "maybe"}}, "stream_options.include_usage"),
        (COMPLETIONS, {**GOOD, "seed": "a"}, "seed"),
        (COMPLETIONS, {**GOOD, "model": 1}, "model"),
        (COMPLETIONS, {**GOOD, "prompt": {"a": 1}}, "prompt"),
        (COMPLETIONS, {**GOOD, "temperature": "0"}, "temperature"),
        (COMPLETIONS, b'{"model": "demo", "prompt": "x", "temperature": NaN}', "temperature"),
        (COMPLETIONS, {**GOOD, "temperature": -1}, "temperature"),
        (COMPLETIONS, {**GOOD, "temperature": 1e400}, "temperature"),
        (COMPLETIONS, {**GOOD, "top_p": 0}, "top_p"),
        (COMPLETIONS, {**GOOD, "stop": [""]}, "stop"),
        (COMPLETIONS, {**GOOD, "stop": ["x"] * 17}, "stop"),
        (COMPLETIONS, {**GOOD, "frequency_penalty": 3}, "frequency_penalty"),
        (COMPLETIONS, {**GOOD, "n": 2}, "n"),
        (COMPLETIONS, {**GOOD, "logprobs": 1}, "logprobs"),
        (COMPLETIONS, {**GOOD, "logprobs": 0}, "logprobs"),
        (COMPLETIONS, {**GOOD, "top_k": 40}, "top_k"),
        (COMPLETIONS, {**GOOD, "min_p": 0.1}, "min_p"),
        (COMPLETIONS, {**GOOD, "echo": True}, "echo"),
        (CHAT, {"model": "demo"}, "messages"),
        (CHAT, {"model": "demo", "messages": []}, "messages"),
        (CHAT, {"model": "demo", "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (CHAT, {"model": "demo", "messages": HELLO, "max_completion_tokens": -1}, "max_completion_tokens"),
        (CHAT, {"model": "demo", "messages": HELLO, "n": 3}, "n"),
        (CHAT, {"model": "demo", "messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"model": "demo", "messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=repr,
)
def test_a_malformed_request_is_a_400_that_names_what_is_wrong(
    cpu_server: Server, path: str, body: object, param: str | None
) -> None:
    """And the next request is served."""
    status, error = ask(cpu_server, path, body)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param or (param is not None and str(error["param"]).startswith(f"{param}."))
    assert ask(cpu_server, COMPLETIONS, GOOD)[0] == 200


@pytest.mark.parametrize(
    ("status", "path", "body", "headers", "method"),
    [
        (404, "/v1/nothing", None, {}, "GET"),
        (404, "/v1/models/other", None, {}, "GET"),
        (404, COMPLETIONS, {**GOOD, "model": "other"}, JSON, "POST"),
        (405, COMPLETIONS, None, {}, "GET"),
        (403, "/v1/models", None, {"Host": "evil.example"}, "GET"),
        (403, COMPLETIONS, GOOD, {**JSON, "Host": "evil.example:80"}, "POST"),
        (415, COMPLETIONS, GOOD, {"Content-Type": "text/plain"}, "POST"),
        (415, COMPLETIONS, GOOD, {}, "POST"),
        (413, COMPLETIONS, {**GOOD, "prompt": "x" * 30_000}, JSON, "POST"),
        (413, COMPLETIONS, [b"x" * 8192] * 4, JSON, "POST"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_cannot_be_has_its_own_status(
    cpu_server: Server, status: int, path: str, body: object, headers: dict[str, str], method: str
) -> None:
    """Unknown paths and models, foreign host names, other types, bodies over the limit, announced or not."""
    sent = iter(body) if isinstance(body, list) else body
    assert ask(cpu_server, path, sent, headers, method)[0] == status


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/models", "/v1/models/demo", "/health", "/metrics"])
def test_a_wrong_method_is_told_the_right_one(cpu_server: Server, path: str) -> None:
    """Every path takes one, and HEAD where it takes GET."""
    right = "POST" if path in (COMPLETIONS, CHAT) else "GET"
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {right}:
        connection = http.client.HTTPConnection(cpu_server.url.removeprefix("http://"), timeout=LIMIT_S)
        connection.request(method, path, json.dumps(GOOD), JSON)
        answer = connection.getresponse()
        assert (answer.status, right in str(answer.headers["Allow"])) == (405, True)
        assert json.loads(answer.read())["error"]["message"]
        connection.close()


COMMON = "Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "said",
    [
        "garbage\r\n\r\n",
        f"POST {COMPLETIONS} HTTP/1.1\r\n{COMMON}Content-Length: -5\r\n\r\n",
        f"POST {COMPLETIONS} HTTP/1.1\r\n{COMMON}Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        f"GET /health HTTP/1.1\r\n{COMMON}X: {'a' * 20_000}",
    ],
    ids=["no HTTP", "negative length", "chunk without size", "endless header"],
)
def test_what_is_no_http_is_a_400(cpu_server: Server, said: str) -> None:
    """And the next request is served."""
    host, _, port = cpu_server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(said.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert ask(cpu_server, COMPLETIONS, GOOD)[0] == 200


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_prompt_longer_than_the_context_is_refused(cpu_server: Server, stream: bool) -> None:
    """Before anything is computed; the message has both lengths."""
    with pytest.raises(openai.BadRequestError, match="512") as refused:
        cpu_server.client().completions.create(model="demo", prompt="import os " * 600, stream=stream)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("text", ["a", "ab cd ", "\n", "🙂"])
def test_a_prompt_of_half_a_megabyte_is_refused_and_hurts_nobody(server: Server, text: str) -> None:
    """Tokenising it takes no more stack or time than there is."""
    with pytest.raises(openai.BadRequestError, match="room for 512"):
        server.client().completions.create(model="demo", prompt=text * (450_000 // len(text.encode())))
    assert server.metrics()["moetune_engine_restarts_total"] == 0


def test_more_than_run_or_wait_are_turned_away(cpu_server: Server) -> None:
    """One runs, one waits, the rest are told to come later; those taken are served to their end."""

    async def several() -> list[object]:
        async with cpu_server.async_client() as client:
            asked = [client.completions.create(model="demo", prompt=p, max_tokens=400, temperature=0) for p in PROMPTS]
            return list(await asyncio.gather(*asked, return_exceptions=True))

    results = asyncio.run(several())
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    served = [result for result in results if isinstance(result, openai.types.Completion)]
    assert len(refused) + len(served) == len(PROMPTS)
    assert len(served) >= 2
    assert refused
    assert refused[0].response.headers["Retry-After"]
    assert cpu_server.settled()["moetune_requests_waiting"] == 0


def test_a_key_is_asked_of_everyone(tmp_path: Path) -> None:
    """Of all but `/health`; on any address then."""
    everywhere = "0.0.0.0"  # noqa: S104  (that is the point)
    with serving(tmp_path, "--host", everywhere, "--parallel", "1", key="a-long-secret") as server:
        local = server.url.replace(everywhere, "127.0.0.1")
        guarded = Server(local, server.process, server.log, server.config, None, "a-long-secret")
        assert guarded.client().completions.create(**GOOD).choices[0].text
        assert guarded.metrics()["moetune_requests_total{/v1/completions,200}"] == 1
        with pytest.raises(openai.AuthenticationError):
            guarded.client(key="a-wrong-secret").models.list()
        for headers in ({}, {"Authorization": "a-long-secret"}, {"Authorization": "Bearer "}):
            assert ask(guarded, "/metrics", None, headers, "GET")[0] == 401
        assert ask(guarded, "/health", None, {}, "GET")[0] == 200
        assert "a-long-secret" not in server.log.read_text()
