"""Compiles the small C++ programs of this folder against the engine's sources and llama-cpp-python's libraries."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """Build the program `out` from sources and objects; the compiler's own message is the assertion's."""
    link = [f"-L{LIBRARIES}", "-l:libggml.so.0", "-l:libggml-base.so.0", f"-Wl,-rpath,{LIBRARIES}"] if ggml else []
    objects = compile_objects(out.parent, [s for s in sources if s.suffix == ".cpp"], flags=flags, includes=includes)
    objects += [source for source in sources if source.suffix == ".o"]
    return _compile(out, [*map(str, objects), *link, "-pthread"], flags, includes)


def compile_objects(
    folder: Path, sources: Sequence[Path], *, flags: Sequence[str] = (), includes: Sequence[Path] = ()
) -> list[Path]:
    """Compile each source file into `folder`, as many at once as there are cores."""

    def compile_one(source: Path) -> Path:
        return _compile(folder / f"{source.parent.name}-{source.stem}.o", ["-c", str(source)], flags, includes)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def _compile(out: Path, what: Sequence[str], flags: Sequence[str], includes: Sequence[Path]) -> Path:
    compiler = shutil.which("c++")
    assert compiler, "a C++ compiler is needed"
    command = [compiler, "-std=c++17", "-O1", "-g", *WARNINGS, *flags, f"-I{SOURCES}"]
    for path in (*includes, HEADERS):
        command += ["-isystem", str(path)]
    done = subprocess.run([*command, *what, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out
