"""The replaying functions of the plugin's C API refuse wrong arguments; what they count is tested elsewhere."""

import ctypes

import numpy as np
import pytest

from moetune.engine import library

pytestmark = pytest.mark.skipif(not library.plugin_path().is_file(), reason="the plugin is not built")

TRACE = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int32] * 3, ctypes.c_size_t]
TEXT = [ctypes.c_char_p, ctypes.c_size_t]


def replay(ids: list[list[int]], n_expert: int, n_slots: int, settings: bytes | None) -> tuple[int, str]:
    """Hits and the reason for none."""
    library.ggml()
    function = ctypes.CDLL(str(library.plugin_path())).hotcache_replay
    function.argtypes, function.restype = [*TRACE, ctypes.c_char_p, *TEXT], ctypes.c_int64
    tokens = np.array(ids, np.int32)
    reason = ctypes.create_string_buffer(256)
    hits = function(tokens.ctypes.data, *tokens.shape, n_expert, n_slots, 0, settings, reason, len(reason))
    return hits, reason.value.decode()


@pytest.mark.parametrize(
    ("ids", "n_expert", "n_slots", "settings", "because"),
    [
        ([[0, 8]], 8, 2, b"", "token 0 names expert 8 of 8"),
        ([[0, 1], [-1, 0]], 8, 2, b"", "token 1 names expert -1 of 8"),
        ([[3, 3]], 8, 2, b"", "expert 3 twice"),
        ([[0, 1]], 1, 2, b"", "2 experts used of 1"),
        ([[0, 1]], 8, -1, b"", "-1 slots"),
        ([[0, 1]], 8, 2, b"policy=magic", "policy=magic: must be heat, lru, lfru or static"),
        ([[0, 1]], 8, 2, b"interval 4", "must be key=value"),
        ([[0, 1]], 2**30, 2, b"", "experts: must be 1 to 65536"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_reason(
    ids: list[list[int]], n_expert: int, n_slots: int, settings: bytes, because: str
) -> None:
    hits, reason = replay(ids, n_expert, n_slots, settings)
    assert hits == -1
    assert because in reason


def test_right_arguments_are_replayed_and_settings_may_be_left_out() -> None:
    tokens = [[0, 1], [0, 1], [0, 1]]
    assert replay(tokens, 8, 2, None) == replay(tokens, 8, 2, b"policy=heat\n") == (2, "")
    assert replay(tokens, 8, 2, b"interval=1\npromotions=0") == (0, "")
