"""``python -m moetune.demo.synthetic OUT.gguf``: writes a random-weight model."""

import argparse
import dataclasses
import sys
from pathlib import Path

from moetune.demo.synthetic.architectures import ARCHITECTURES
from moetune.demo.synthetic.spec import STORAGE_TYPES, SyntheticSpec
from moetune.demo.synthetic.writer import write_synthetic

_HELP = {
    "arch": "one of " + ", ".join(sorted(ARCHITECTURES)),
    "layers": "number of blocks",
    "experts": "routed experts a layer; 0 makes a dense model (llama, qwen3)",
    "used": "experts a token uses",
    "embd": "width of the stream, a multiple of 64 * kv-heads",
    "ff": "width of one expert",
    "kv_heads": "key-value heads; heads are 64 wide",
    "vocab": "tokens, at least 258",
    "context": "context length written into the file",
    "quant": "storage of the routed experts: " + ", ".join(STORAGE_TYPES),
    "quant_down": "storage of their down projection, if another",
    "quant_odd": "storage of the routed experts of every second layer, if another",
    "quant_dense": "storage of every other matrix",
    "skew": "how uneven expert popularity is: 0 flat, 0.9 like trained models, 4 extreme",
    "drift": "0 to 1: how far popularity depends on a token's topic (id * topics // vocab)",
    "topics": "topics of the vocabulary",
    "loudness": "of embeddings beside what layers add; loud, deep layers route by the token too",
    "fused_gate_up": "store gate and up in one tensor",
    "expert_scales": "add a scale for each expert",
    "latent": "width of the experts' input and output; 0 is the stream's",
    "split": "number of files",
    "seed": "the same seed gives the same bytes",
}


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m moetune.demo.synthetic", description=__doc__)
    parser.add_argument("out", type=Path, help="the file to write; with --split, the name that numbers are added to")
    for field in dataclasses.fields(SyntheticSpec):
        flag, shown = "--" + field.name.replace("_", "-"), f"{_HELP[field.name]} (default: {field.default})"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", help=_HELP[field.name])
        else:
            kind = str if field.default is None else type(field.default)
            parser.add_argument(flag, type=kind, default=field.default, help=shown)
    options = vars(parser.parse_args())
    out = options.pop("out")
    try:
        files = write_synthetic(out, SyntheticSpec(**options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
