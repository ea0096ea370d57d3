"""The presets that ship, and a user's own."""

from pathlib import Path

import pytest
import yaml

from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.workload import PRESETS, load_workload

MINE = {
    "name": "mail",
    "description": "Answering letters.",
    "depth_tokens": 0,
    "prompt_tokens": 300,
    "reply_tokens": 150,
    "texts": ["Dear Sir or Madam,"],
    "sample_prompt": "Answer this letter.",
}


def mine(tmp_path: Path, **changes: object) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE | changes))
    return str(path)


@pytest.mark.parametrize(("name", "least_bytes"), [("chat", 4000), ("code", 6000), ("long", 12000)])
def test_a_preset_ships_real_text(name: str, least_bytes: int) -> None:
    """Every preset has enough text that a trace is not one sentence over and over."""
    workload = load_workload(name)
    assert workload.name == name
    assert sum(len(text.encode()) for text in workload.texts) >= least_bytes
    assert workload.sample_prompt.strip()


def test_presets_differ_in_what_they_weigh() -> None:
    """Chat is mostly reply, code and long are mostly prompt."""
    share = {name: load_workload(name).reply_tokens / load_workload(name).prompt_tokens for name in PRESETS}
    assert share["chat"] > 1 > share["code"] > share["long"]


def test_the_example_in_the_code_preset_is_python() -> None:
    """The source text of the code preset compiles, so that a model sees what an editor would send."""
    first, second, _ = load_workload("code").texts
    compile(first + second, "calendar_rooms.py", "exec")


def test_a_users_own_file_works(tmp_path: Path) -> None:
    """A path to a YAML file is a workload like any other."""
    workload = load_workload(mine(tmp_path))
    assert (workload.name, workload.n_ctx_needed) == ("mail", 450)


def test_an_unknown_name_lists_the_presets() -> None:
    """The message names what there is."""
    with pytest.raises(MoetuneError, match="'chta'") as caught:
        load_workload("chta")
    assert caught.value.code is ExitCode.USAGE
    assert all(name in caught.value.remedy for name in PRESETS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"name": "../up"}, "name"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"prompt_tokens": 2.5}, "prompt_tokens"),
        ({"reply_tokens": 1}, "reply_tokens"),
        ({"depth_tokens": 10**12}, "depth_tokens"),
        ({"texts": []}, "texts"),
        ({"texts": [""]}, "texts.0"),
        ({"name": "chat"}, "chat"),
    ],
    ids=str,
)
def test_a_workload_that_cannot_be_measured_is_refused(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    """The message names the file and the key at fault."""
    path = mine(tmp_path, **changes)
    with pytest.raises(MoetuneError) as caught:
        load_workload(path)
    assert caught.value.code is ExitCode.USAGE
    assert path in caught.value.cause
    assert named in caught.value.cause


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"a: &x 1\nb: *x\n", b"[1, 2]"], ids=repr)
def test_a_file_that_is_not_a_workload_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, the answer is one sentence and not a traceback."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(MoetuneError, match="is not a workload"):
        load_workload(str(path))


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """A path to nothing is reported as such."""
    with pytest.raises(MoetuneError, match="cannot be read") as caught:
        load_workload(str(tmp_path / "none.yaml"))
    assert caught.value.code is ExitCode.USAGE
