"""From a plan to GGUF files, one tensor in memory at a time."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from moetune.demo.synthetic.architectures import plan_model
from moetune.demo.synthetic.plan import ModelPlan, TensorPlan, Value
from moetune.demo.synthetic.spec import SyntheticSpec
from moetune.demo.synthetic.vocabulary import add_tokenizer

_PLAIN: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "I32": np.int32}


def write_synthetic(path: Path | str, spec: SyntheticSpec) -> list[Path]:
    """Writes the model and returns its files: ``path``, or ``STEM-00001-of-0000N.gguf`` and so on beside it.

    The same spec gives the same bytes. Raises ValueError when the spec cannot be met, OSError when writing fails.
    """
    path = Path(path)
    plan = plan_model(spec)
    if spec.split > len(plan.tensors):
        raise ValueError(f"split: the model has only {len(plan.tensors)} tensors")
    writer = GGUFWriter(path, spec.arch)
    writer.add_name(f"synthetic-{spec.arch}")
    for key, value in plan.metadata.items():
        _add_metadata(writer, f"{spec.arch}.{key}", value)
    add_tokenizer(writer, spec)
    if "token_types.weight" in {tensor.name for tensor in plan.tensors}:
        writer.add_token_type_count(1)

    for number, tensor in enumerate(plan.tensors):
        if _starts_file(number, len(plan.tensors), spec.split):
            writer.tensors.append({})
        _announce(writer, tensor)
    files = writer.format_shard_names(path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan.tensors:
        writer.write_tensor_data(tensor.data(spec.seed))
    writer.close()
    return files


def synthetic_bytes(spec: SyntheticSpec) -> int:
    """Bytes of all tensors, without writing anything."""
    plan: ModelPlan = plan_model(spec)
    return sum(tensor.bytes for tensor in plan.tensors)


def _starts_file(number: int, tensors: int, files: int) -> bool:
    return number > 0 and number * files // tensors != (number - 1) * files // tensors


def _announce(writer: GGUFWriter, tensor: TensorPlan) -> None:
    # The writer takes plain tensors by dtype and block types by name; both with the shape in elements.
    dtype = np.dtype(_PLAIN.get(tensor.quant, np.float32))
    raw = None if tensor.quant in _PLAIN else GGMLQuantizationType[tensor.quant]
    writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.bytes, raw_dtype=raw)


def _add_metadata(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
