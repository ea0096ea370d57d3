"""Random-weight Mixture-of-Experts models of any size and many architectures, with chosen routing skew."""

from moetune.demo.synthetic.architectures import ARCHITECTURES, Architecture
from moetune.demo.synthetic.spec import STORAGE_TYPES, SyntheticSpec
from moetune.demo.synthetic.writer import synthetic_bytes, write_synthetic

__all__ = [
    "ARCHITECTURES",
    "STORAGE_TYPES",
    "Architecture",
    "SyntheticSpec",
    "synthetic_bytes",
    "write_synthetic",
]
