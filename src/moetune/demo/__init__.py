"""The demo model that ships with moetune: small, trained, and really routed."""

from importlib.resources import files
from pathlib import Path


def demo_model_path() -> Path:
    """The GGUF file inside the installed package. Raises FileNotFoundError when the package lost it."""
    path = Path(str(files(__name__).joinpath("demo.gguf")))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: install moetune again")
    return path
