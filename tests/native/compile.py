"""Compiles the small C++ programs of this folder against the engine's sources and llama-cpp-python's libraries."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "engine" / "native"
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
HEADERS = Path(llama_cpp.__file__).parents[1] / "include"
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def compile_program(
    out: Path, sources: Sequence[Path], *, flags: Sequence[str] = (), includes: Sequence[Path] = (), ggml: bool = True
) -> Path:
    """Build the program `out`; the compiler's own message is the assertion's."""
    link = [f"-L{LIBRARIES}", "-l:libggml.so.0", "-l:libggml-base.so.0", f"-Wl,-rpath,{LIBRARIES}"] if ggml else []
    return _compile(out, [*map(str, sources), *link, "-pthread"], flags, includes)


def compile_object(folder: Path, source: Path, *, flags: Sequence[str] = ()) -> Path:
    """Compile one source file into `folder`."""
    return _compile(folder / f"{source.stem}.o", ["-c", str(source)], flags, ())


def _compile(out: Path, what: Sequence[str], flags: Sequence[str], includes: Sequence[Path]) -> Path:
    compiler = shutil.which("c++")
    assert compiler, "a C++ compiler is needed"
    command = [compiler, "-std=c++17", "-O1", "-g", *WARNINGS, *flags, f"-I{SOURCES}"]
    for path in (*includes, HEADERS):
        command += ["-isystem", str(path)]
    done = subprocess.run([*command, *what, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out
