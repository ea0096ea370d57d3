"""moetune: the fastest way to run one Mixture-of-Experts GGUF model on one machine, found by measuring."""

from importlib.metadata import version

__version__ = version("moetune")
