"""Sixteen clients, some of whom leave: nothing lost, wrong or growing. MOETUNE_TEST_SERVER_SECONDS: how long."""

import asyncio
import itertools
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil
import pytest
from serving import EMULATED, ON_CPU, ON_DEVICE, PROMPTS, Server, serving

pytestmark = pytest.mark.slow

CLIENTS = 16
LASTS_S = float(os.environ.get("MOETUNE_TEST_SERVER_SECONDS", "120"))
N_TOKENS = 64
MIB = 1 << 20
# By then everything has been touched; what allocators hold back then comes and goes.
WARM_S = LASTS_S / 4
GROWTH_BYTES = 24 * MIB


@dataclass
class Tally:
    """What came of all requests, and the memory of server and engine over time."""

    whole: int = 0
    left: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)
    rss: list[tuple[float, int]] = field(default_factory=list)


async def client(server: Server, alone: dict[str, str], tally: Tally, number: int, until: float) -> None:
    """Streams one text after the other, and leaves every third or so."""
    chance = random.Random(number)
    async with server.async_client() as api:
        while time.monotonic() < until:
            prompt = chance.choice(PROMPTS)
            leave_after = chance.randrange(0, N_TOKENS // 2) if chance.random() < 0.3 else None
            text = await streamed(api, prompt, leave_after)
            if text is None:
                tally.left += 1
            elif text == alone[prompt]:
                tally.whole += 1
            else:
                tally.wrong.append((prompt, text))


async def streamed(api: openai.AsyncOpenAI, prompt: str, leave_after: int | None) -> str | None:
    """The whole text, or None when the client left."""
    asked = {"model": "demo", "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0, "stream": True}
    text, finish = "", None
    async with await api.completions.create(**asked) as stream:
        for n_pieces in itertools.count():
            if n_pieces == leave_after:
                return None
            chunk = await anext(stream, None)
            if chunk is None:
                break
            text, finish = text + chunk.choices[0].text, chunk.choices[0].finish_reason
    return text if finish is not None else f"{text} [lost its end]"


async def watch(server: Server, tally: Tally, until: float) -> None:
    """Memory every second."""
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
    while time.monotonic() < until:
        tally.rss.append((time.monotonic(), sum(process.memory_info().rss for process in processes)))
        await asyncio.sleep(1)


@pytest.mark.parametrize("tier", ["CPU", "emulated accelerator"])
def test_sixteen_streaming_clients_for_two_minutes(tmp_path: Path, tier: str) -> None:
    """Every text that was not left is, to its end, that of a client alone; memory and KV cells are flat."""
    config, emulate = (ON_CPU, None) if tier == "CPU" else (ON_DEVICE, EMULATED)
    tally = Tally()
    with serving(tmp_path, "--parallel", "4", "--queue", "64", config=config, emulate=emulate) as server:
        alone = server.alone(PROMPTS, N_TOKENS)
        start = time.monotonic()
        until = start + LASTS_S

        async def everyone() -> None:
            clients = [client(server, alone, tally, number, until) for number in range(CLIENTS)]
            await asyncio.gather(watch(server, tally, until), *clients)

        asyncio.run(everyone())
        figures = server.settled()
        log = server.log.read_text()
    assert tally.wrong == []
    assert tally.whole > CLIENTS
    assert tally.left > CLIENTS
    assert figures["moetune_requests_total{/v1/completions,200}"] == tally.whole + tally.left
    assert figures["moetune_requests_cancelled_total"] <= tally.left
    assert figures["moetune_kv_cells_used"] == 0
    assert figures["moetune_engine_restarts_total"] == 0
    warm = [rss for at, rss in tally.rss if at - start > WARM_S]
    third = len(warm) // 3
    growth = max(warm[-third:]) - max(warm[:third])
    print(f"{tier}: {tally.whole} whole, {tally.left} left, {len(tally.wrong)} wrong, {growth / MIB:+.1f} MiB")
    assert growth < GROWTH_BYTES
    assert log.count("\n") < 20, log
