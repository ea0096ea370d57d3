"""What is known of a model from its GGUF file alone: sizes by layer, the shape of its KV cache, its fingerprint."""

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from gguf.constants import LlamaFileType

from moetune.engine.config import KV_BITS_PER_VALUE, KvType
from moetune.engine.gguf_fingerprint import fingerprint
from moetune.engine.gguf_header import Array, GgufHeader, TensorInfo, Value, read_header
from moetune.errors import ExitCode, MoetuneError

MAX_LAYERS = 4_096
MAX_EXPERTS = 65_536
MAX_WIDTH = 1 << 24
_SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")
_BLOCK_NAME = re.compile(r"^blk\.(\d{1,6})\.(.+)$")
# What llama.cpp's own -cmoe and -ncmoe move to RAM.
_ROUTED_NAME = re.compile(r"^ffn_(up|down|gate|gate_up)_(ch|)exps")
_KV_TENSORS = ("attn_k.", "attn_kv_a", "attn_k_b.")
_RECURRENT_TENSORS = ("ssm_", "time_mix_", "shortconv.")


@dataclass(frozen=True)
class Layer:
    """One repeating layer. Bytes as stored in the file.

    expert_bytes: one routed expert, all its matrices and biases; routed_bytes: all of the layer's experts;
    dense_bytes: the rest (attention, norms, router, shared experts). k_values, v_values: KV-cache values a token.
    head_dim_k, head_dim_v: what a quantised cache's block must divide. state_values: f32 values of recurrent state.
    expert_weights, dense_weights: numbers of weights in what expert_bytes and dense_bytes are the sizes of.
    """

    index: int
    expert_bytes: int
    routed_bytes: int
    dense_bytes: int
    k_values: int
    v_values: int
    head_dim_k: int
    head_dim_v: int
    state_values: int
    expert_weights: int
    dense_weights: int


@dataclass(frozen=True)
class Model:
    """One GGUF model, all shards together.

    n_layers is llama.cpp's block count, next-token-prediction layers included. output_bytes is what the output
    layer costs where it lies: the embedding's own size when the two are tied.
    """

    paths: tuple[Path, ...]
    name: str
    architecture: str
    quant: str
    n_layers: int
    n_expert: int
    n_expert_used: int
    n_embd: int
    n_head: int
    n_vocab: int
    context_length: int
    is_mla: bool
    layers: tuple[Layer, ...]
    embedding_bytes: int
    output_bytes: int
    other_bytes: int
    tensor_bytes: int
    file_bytes: int
    has_chat_template: bool
    fingerprint: str

    @property
    def path(self) -> Path:
        """The file llama.cpp is given: the first shard."""
        return self.paths[0]

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with routed experts."""
        return tuple(layer.index for layer in self.layers if layer.expert_bytes)

    @property
    def is_moe(self) -> bool:
        """Whether there is any routed expert to place."""
        return bool(self.moe_layers)

    @cached_property
    def recurrent_layers(self) -> tuple[int, ...]:
        """Indices of the layers that keep a recurrent state."""
        return tuple(layer.index for layer in self.layers if layer.state_values)

    def kv_bytes_per_token(self, type_k: KvType, type_v: KvType) -> float:
        """KV-cache bytes one position costs over all layers."""
        k_bits, v_bits = KV_BITS_PER_VALUE[type_k], KV_BITS_PER_VALUE[type_v]
        return sum(layer.k_values * k_bits + layer.v_values * v_bits for layer in self.layers) / 8


def read_model(path: Path | str) -> Model:
    """Read a GGUF model, split or not, from any of its files; MoetuneError (MODEL) for what cannot be used."""
    path = Path(path).expanduser().absolute()
    try:
        # Opening a pipe or a device would wait for a writer that never comes.
        is_special = path.exists() and not path.is_file() and not path.is_dir()
    except OSError as error:
        raise _refuse(path, f"cannot be read: {error.strerror}", "Check the path of the GGUF file.") from None
    if is_special:
        raise _refuse(path, "is not a regular file", "Give the path of a GGUF file.")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise _refuse(path, "has a name that is not text", "Rename the file.") from None
    headers = _read_shards(path)
    return _model_of(headers)


def _refuse(path: Path, cause: str, remedy: str) -> MoetuneError:
    return MoetuneError(f"{path} {cause}.", remedy, ExitCode.MODEL)


def _read_shards(path: Path) -> tuple[GgufHeader, ...]:
    first = read_header(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return (first,)
    match = _SHARD_NAME.match(path.name)
    if match is None or int(match["count"]) != count:
        raise _refuse(
            path,
            f"is one of {count} shards, but its name does not say which",
            "Give the shards their names back: NAME-00001-of-00003.gguf and so on.",
        )
    names = [path.with_name(f"{match['stem']}-{no:05d}-of-{count:05d}.gguf") for no in range(1, count + 1)]
    missing = [name.name for name in names if not name.is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        raise _refuse(
            path,
            f"is one of {count} shards, and {len(missing)} of them are missing beside it: {listed}",
            "Put all shards in one folder.",
        )
    return tuple(first if name == path else read_header(name) for name in names)


class _Metadata:
    """Typed look-ups in one model's metadata; absurd values are a MoetuneError, not a surprise later."""

    def __init__(self, header: GgufHeader) -> None:
        self.path = header.path
        self.values = header.metadata
        self.architecture = self.text("general.architecture")
        if not self.architecture:
            raise _refuse(self.path, "does not say its architecture", "Use a GGUF file of a language model.")

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def of_architecture(self, key: str) -> Value | None:
        return self.values.get(f"{self.architecture}.{key}")

    def number(self, key: str, *, default: int | None, most: int = MAX_WIDTH) -> int:
        """One whole number; of an array (one entry a layer) the largest."""
        value = self.of_architecture(key)
        if value is None and default is not None:
            return default
        if isinstance(value, Array):
            value = max((v for v in value.items or () if isinstance(v, int)), default=0)
        if not isinstance(value, int) or not 0 <= value <= most:
            said = "is missing" if value is None else f"is {str(value)[:40]!r}"
            raise _refuse(
                self.path, f"has unusable metadata: {self.architecture}.{key} {said}", "Convert the model again."
            )
        return value

    def per_layer(self, key: str, n_layers: int, default: int) -> tuple[int, ...]:
        value = self.of_architecture(key)
        if isinstance(value, Array) and value.items is not None:
            numbers = tuple(v for v in value.items if isinstance(v, int) and 0 <= v <= MAX_WIDTH)
            if len(numbers) != value.length or len(numbers) < n_layers:
                raise _refuse(
                    self.path, f"has unusable metadata: {self.architecture}.{key}", "Convert the model again."
                )
            return numbers[:n_layers]
        return (self.number(key, default=default),) * n_layers


def _model_of(headers: tuple[GgufHeader, ...]) -> Model:
    head = headers[0]
    meta = _Metadata(head)
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not tensors:
        raise _refuse(head.path, "holds no tensors, only a vocabulary", "Use the GGUF file with the weights.")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise _refuse(head.path, "has the same tensor in two shards", "Put the shards of one model only together.")
    if not any(tensor.name == "token_embd.weight" for tensor in tensors):
        raise _refuse(
            head.path, f"is no language model (architecture {meta.architecture})", "Use the main model's GGUF file."
        )
    n_layers = meta.number("block_count", default=None, most=MAX_LAYERS)
    n_expert = meta.number("expert_count", default=0, most=MAX_EXPERTS)
    n_embd = meta.number("embedding_length", default=None)
    by_name = {tensor.name: tensor for tensor in tensors}
    embedding = by_name["token_embd.weight"]
    output = by_name.get("output.weight")
    layers = _layers(meta, tensors, n_layers, n_expert, n_embd)
    in_layers = sum(layer.routed_bytes + layer.dense_bytes for layer in layers)
    total = sum(tensor.n_bytes for tensor in tensors)
    return Model(
        paths=tuple(header.path for header in headers),
        name=meta.text("general.name") or head.path.stem,
        architecture=meta.architecture,
        quant=_quant_label(head, tensors),
        n_layers=n_layers,
        n_expert=n_expert,
        n_expert_used=meta.number("expert_used_count", default=0, most=MAX_EXPERTS),
        n_embd=n_embd,
        n_head=max(1, meta.number("attention.head_count", default=1)),
        n_vocab=embedding.shape[1] if len(embedding.shape) > 1 else 0,
        context_length=meta.number("context_length", default=0, most=1 << 32),
        is_mla=_is_mla(meta),
        layers=layers,
        embedding_bytes=embedding.n_bytes,
        output_bytes=(output or embedding).n_bytes,
        other_bytes=total - in_layers - embedding.n_bytes - (output.n_bytes if output else 0),
        tensor_bytes=total,
        file_bytes=sum(header.file_bytes for header in headers),
        has_chat_template=bool(meta.text("tokenizer.chat_template")),
        fingerprint=fingerprint(headers),
    )


def _layers(meta: _Metadata, tensors: list[TensorInfo], n_layers: int, n_expert: int, n_embd: int) -> tuple[Layer, ...]:
    blocks: list[list[tuple[str, TensorInfo]]] = [[] for _ in range(n_layers)]
    for tensor in tensors:
        match = _BLOCK_NAME.match(tensor.name)
        if match and int(match[1]) < n_layers:
            blocks[int(match[1])].append((match[2], tensor))
    if not any(blocks):
        raise _refuse(meta.path, "holds no layer's weights", "Convert the model again.")
    n_head = meta.per_layer("attention.head_count", n_layers, 1)
    n_head_kv = meta.per_layer("attention.head_count_kv", n_layers, max(n_head))
    default_dim = n_embd // max(1, *n_head)
    dim_k = max(meta.number(f"attention.key_length{end}", default=0) for end in ("", "_swa")) or default_dim
    dim_v = max(meta.number(f"attention.value_length{end}", default=0) for end in ("", "_swa")) or default_dim
    state_values = _state_values(meta, n_embd)
    layers = []
    for index, block in enumerate(blocks):
        routed = [(name, tensor) for name, tensor in block if _ROUTED_NAME.match(name)]
        whole = [t for _, t in routed if n_expert and len(t.shape) > 1 and t.shape[-1] == n_expert]
        recurrent = any(name.startswith(_RECURRENT_TENSORS) for name, _ in block)
        attends = not recurrent or any(name.startswith(_KV_TENSORS) for name, _ in block)
        routed_bytes = sum(tensor.n_bytes for _, tensor in routed)
        layers.append(
            Layer(
                index=index,
                expert_bytes=sum(tensor.n_bytes for tensor in whole) // n_expert if whole else 0,
                routed_bytes=routed_bytes,
                dense_bytes=sum(tensor.n_bytes for _, tensor in block) - routed_bytes,
                k_values=n_head_kv[index] * dim_k if attends else 0,
                # With MLA the cache holds one latent vector; V is a view of it.
                v_values=n_head_kv[index] * dim_v if attends and not _is_mla(meta) else 0,
                head_dim_k=dim_k,
                head_dim_v=dim_v,
                state_values=max(1, state_values) if recurrent else 0,
                expert_weights=sum(prod(tensor.shape) for tensor in whole) // n_expert if whole else 0,
                dense_weights=sum(prod(t.shape) for _, t in block) - sum(prod(t.shape) for _, t in routed),
            )
        )
    return tuple(layers)


def _is_mla(meta: _Metadata) -> bool:
    return meta.number("attention.key_length_mla", default=0) > 0


def _state_values(meta: _Metadata, n_embd: int) -> int:
    """f32 values of recurrent state a layer keeps for one sequence (llama.cpp's n_embd_r + n_embd_s)."""
    inner = meta.number("ssm.inner_size", default=0)
    state = meta.number("ssm.state_size", default=0)
    groups = meta.number("ssm.group_count", default=0)
    conv = max(0, meta.number("ssm.conv_kernel", default=0) - 1) * (inner + 2 * groups * state)
    wkv = meta.number("wkv.head_size", default=0) * n_embd
    return conv + inner * state + wkv


def _quant_label(head: GgufHeader, tensors: list[TensorInfo]) -> str:
    file_type = head.metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in LlamaFileType._value2member_map_:
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.type_name] = by_type.get(tensor.type_name, 0) + tensor.n_bytes
    return max(by_type, key=lambda name: by_type[name])
