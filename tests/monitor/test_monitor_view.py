"""What a frame of the monitor shows, and that it fits the terminal."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.color import Color
from rich.console import Console
from samples import restarted, sample

from moetune.engine.activity import Activity, KvRow
from moetune.monitor.history import History
from moetune.monitor.view import frame

SNAPSHOT = Path(__file__).with_name("frame.txt")


def history_of(*samples: Activity) -> History:
    history = History()
    for each in samples:
        history.add(each)
    return history


def text_of(history: History, width: int = 80, height: int | None = None) -> str:
    console = Console(width=width, record=True, color_system=None, force_terminal=False, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(frame(history, width, height))
    return captured.get()


def test_a_frame_looks_as_it_did() -> None:
    """Every figure and every cell of twelve samples, at 80 columns."""
    shown = text_of(history_of(*(sample(at) for at in range(12))))
    assert "\n".join(line.rstrip() for line in shown.splitlines()) == SNAPSHOT.read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize(("n_layers", "n_experts"), [(4, 32), (48, 128), (94, 512), (1, 1)])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (200, 60)])
def test_a_frame_fits_the_terminal(n_layers: int, n_experts: int, width: int, height: int) -> None:
    """However many layers and experts there are; every layer is in some row."""
    shown = text_of(history_of(*(sample(at, n_layers=n_layers, n_experts=n_experts) for at in range(9))), width, height)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    assert "█" in shown
    last = n_layers - 1
    assert any(
        line.split()[0] in (str(last), f"{line.split()[0].split('–')[0]}–{last}") for line in lines if line.strip()
    )


def test_speeds_are_those_of_the_last_seconds() -> None:
    """Ten tokens every quarter of a second; three of four pairs hit."""
    rates = history_of(*(sample(at) for at in range(20))).rates
    assert rates.reply_tps == pytest.approx(40)
    assert rates.prompt_tps == 0
    assert rates.hit_rate == pytest.approx(0.75)
    assert rates.link_bytes_s == pytest.approx(4 * 40 * 1e6)


def test_counters_that_begin_again_are_no_negative_rates() -> None:
    """With every answer the engine counts from zero."""
    history = history_of(*(sample(at) for at in range(12)), restarted(12))
    assert history.rates.promotions_s >= 0
    assert history.rates.hit_rate == pytest.approx(0.75)
    assert all(rates.link_bytes_s >= 0 for rates in history.line)


def test_the_sequences_of_a_server_are_shown_each_by_itself() -> None:
    """One that runs, one that was kept, and free ones; more than there are columns share them."""
    rows = (KvRow(4000, 4096, True), KvRow(600, 4096, False), *[KvRow(0, 4096, False)] * 2)
    shown = text_of(history_of(replace(sample(1), kv=rows)))
    assert "4,600 of 16,384 positions" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("sequences"))
    assert line.split("  ")[0].startswith("sequences")
    assert "1 running, 1 kept, 2 free" in line
    assert line.rstrip().endswith("█▂")
    many = text_of(history_of(replace(sample(1), kv=rows * 16)))
    assert "16 running, 16 kept, 32 free" in many
    assert max(map(len, many.splitlines())) <= 80


def test_another_model_begins_anew() -> None:
    """What was seen of the last one says nothing about it."""
    history = history_of(*(sample(at) for at in range(12)), replace(sample(13), model="another", reply_tokens=0))
    assert len(history.samples) == len(history.line) == 1
    assert history.rates.reply_tps == 0


def test_without_a_cache_it_says_why_there_is_no_map() -> None:
    """Stock llama.cpp counts no experts."""
    assert "without a cache" in text_of(history_of(replace(sample(1), layers=())))


def test_names_cannot_take_over_the_terminal() -> None:
    """A model called like an escape sequence is shown harmlessly; emulated is said."""
    shown = text_of(history_of(replace(sample(1), model="\x1b[2Jx" * 40, emulated=True)))
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "(emulated)" in text_of(history_of(replace(sample(1), emulated=True)))


def test_experts_in_slots_have_a_colour_of_their_own() -> None:
    """Of four layers with eight experts each in slots, and on a wide terminal two characters an expert."""
    for width, wide in ((80, 1), (120, 2)):
        console = Console(width=width, color_system="standard", force_terminal=True, quiet=True)
        lines = console.render_lines(frame(history_of(*(sample(at) for at in range(9))), width))
        cells = [[s for s in line if s.style and s.style.color and s.text.strip()] for line in lines]
        rows = [row for line, row in zip(lines, cells, strict=True) if line[0].text[:1].isdigit()]
        held = ["".join(s.text for s in row if s.style and s.style.color == Color.parse("green")) for row in rows]
        assert [len(row) for row in held] == [8 * wide] * 4
