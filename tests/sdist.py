"""The source distribution of the installed llama-cpp-python: ggml's own headers, and stock llama.cpp to build."""

import subprocess
import sys
import tarfile
from pathlib import Path

import llama_cpp
import platformdirs


def llama_cpp_source() -> Path:
    """Folder of llama.cpp's sources, fetched once by name and version and kept in the user's cache folder."""
    cache = platformdirs.user_cache_path("moetune-tests")
    source = cache / f"llama_cpp_python-{llama_cpp.__version__}"
    if not (source / "vendor" / "llama.cpp" / "ggml").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        requirement = f"llama-cpp-python=={llama_cpp.__version__}"
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*download, "--dest", str(cache), requirement], check=True)
        with tarfile.open(cache / f"{source.name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return source / "vendor" / "llama.cpp"
