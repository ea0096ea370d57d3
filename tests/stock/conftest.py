"""Stock llama.cpp programs, built once from the source distribution of the installed llama-cpp-python."""

import subprocess
from pathlib import Path

import pytest
from sdist import llama_cpp_source

# What these programs do not need, or what would be fetched while building.
LEFT_OUT = ("LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI")
PROGRAMS = ("llama-perplexity", "llama-bench", "llama-server")


@pytest.fixture(scope="session")
def programs() -> Path:
    """Folder of the programs, kept beside the sources for the next run."""
    source = llama_cpp_source()
    build = source.parents[1] / "stock-build"
    configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
    options = [*(f"-D{option}=OFF" for option in LEFT_OUT), "-DLLAMA_BUILD_SERVER=ON"]
    subprocess.run([*configure, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(build), "--target", *PROGRAMS], check=True, capture_output=True)
    return build / "bin"
