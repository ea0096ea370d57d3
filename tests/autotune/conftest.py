"""What the tests of the search share; `world` and `fake_runner` lie beside this file."""

from pathlib import Path

import pytest
from world import request_for

from moetune.autotune.request import SearchRequest


@pytest.fixture
def request_(tmp_path: Path) -> SearchRequest:
    """A short search whose study lies in a folder of its own."""
    return request_for(tmp_path / "searches")
