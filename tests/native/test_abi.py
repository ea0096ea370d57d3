"""The engine's own declaration of ggml's backend interface against ggml's."""

import re
import subprocess
from pathlib import Path

from compile import HERE, SOURCES, compile_program
from sdist import llama_cpp_source

from moetune.engine.library import ggml


def test_declared_tables_have_the_layout_ggml_gives_them(tmp_path: Path) -> None:
    """Every size, every offset and the interface version equal those of ggml's internal header."""
    ggml_source = llama_cpp_source() / "ggml"
    ours = compile_program(tmp_path / "ours", [HERE / "abi_ours.cpp"])
    includes = [ggml_source / "include", ggml_source / "src"]
    theirs = compile_program(tmp_path / "theirs", [HERE / "abi_theirs.cpp"], includes=includes)
    layouts = [subprocess.check_output([program], text=True) for program in (ours, theirs)]
    assert layouts[0].count("\n") > 90
    assert layouts[0] == layouts[1]


def test_checked_version_is_the_installed_one() -> None:
    """The version the header was checked with is the version this installation runs."""
    text = (SOURCES / "ggml_abi.h").read_text()
    match = re.search(r'ggml_version_checked = "([\d.]+)"', text)
    assert match and match[1] == ggml().ggml_version().decode()
