"""Text of a running sequence: whole characters, and stop strings wherever the tokens' borders are."""

from hypothesis import given
from hypothesis import strategies as st

from moetune.engine.serving_text import TextTail


def pushed(tail: TextTail, raw: bytes, sizes: list[int]) -> list[str]:
    """The text released for each piece, until the tail has stopped or the bytes are at their end."""
    pieces, at = [], 0
    for size in [*sizes, len(raw)]:
        pieces.append(tail.push(raw[at : at + size]))
        at += size
        if tail.stopped:
            return pieces
    return [*pieces, tail.end()]


@given(st.text("ab\n🙂é"), st.text("ab\n🙂é", min_size=1, max_size=4), st.lists(st.integers(1, 3)))
def test_a_stop_string_is_found_however_the_text_is_cut(text: str, stop: str, sizes: list[int]) -> None:
    """What comes out is all before its first occurrence."""
    tail = TextTail([stop])
    assert "".join(pushed(tail, text.encode(), sizes)) == text.partition(stop)[0]
    assert tail.stopped == (stop in text)


@given(st.text(), st.lists(st.integers(1, 3)))
def test_characters_are_never_cut(text: str, sizes: list[int]) -> None:
    """Without stop strings everything comes through, and no piece has half a character."""
    pieces = pushed(TextTail([]), text.encode(), sizes)
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces).replace("�" if "�" in text else "", "")


def test_text_is_held_back_only_while_it_may_stop() -> None:
    """What cannot become the stop string any more is released at once."""
    tail = TextTail(["\n\nUser:"])
    assert [tail.push(piece) for piece in (b"Hi\n", b"\nUs", b"e ", b"it")] == ["Hi", "", "\n\nUse ", "it"]


def test_the_earliest_of_several_stop_strings_counts() -> None:
    """In the order of the text, not of the request."""
    tail = TextTail(["later", "sooner"])
    assert tail.push(b"a sooner, b later") == "a "
    assert tail.stopped


def test_bytes_that_are_no_text_are_replaced() -> None:
    """A model can generate any byte."""
    tail = TextTail([])
    assert tail.push(b"a\xff") + tail.push(b"b\xe2\x82") + tail.end() == "a�b�"
