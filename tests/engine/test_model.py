"""Reading a GGUF file: what is learnt from a sound one, and that no damaged one does harm."""

import random
import resource
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from moetune.engine.config import KvType
from moetune.engine.gguf_header import read_header
from moetune.engine.model import Model, read_model
from moetune.errors import ExitCode, MoetuneError

WIDTH, VOCAB, LAYERS, EXPERTS, FF = 64, 40, 3, 4, 32
SECONDS_FOR_ONE_FILE = 1.0


def write_model(
    path: Path, *, experts: int = EXPERTS, seed: int = 1, arch: str = "qwen3moe", **numbers: object
) -> Path:
    """A model of `LAYERS` layers whose first one is dense; `numbers` are more metadata, given by their last name."""
    writer = GGUFWriter(path, arch)
    values = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, values.standard_normal(shape, dtype=np.float32))

    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(4)
    if "head_count_kv" not in numbers:
        writer.add_head_count_kv(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    for key, value in numbers.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.attention.{key}", value)
        else:
            writer.add_uint32(f"{arch}.attention.{key}", int(str(value)))
    tensor("token_embd.weight", VOCAB, WIDTH)
    tensor("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        tensor(f"blk.{layer}.attn_k.weight", 32, WIDTH)
        if experts and layer:
            for part in ("gate", "up", "down"):
                tensor(f"blk.{layer}.ffn_{part}_exps.weight", experts, FF, WIDTH)
            tensor(f"blk.{layer}.ffn_up_exps.bias", experts, FF)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def failure(path: Path) -> MoetuneError:
    """The error that reading `path` gives; fails when there is none or it is not the model's."""
    with pytest.raises(MoetuneError) as caught:
        read_model(path)
    assert caught.value.code is ExitCode.MODEL
    assert caught.value.cause and caught.value.remedy
    return caught.value


def test_sizes_are_told_apart_by_layer(sound: Path) -> None:
    """Experts, with their biases, are counted apart from the dense part, and add up to the file's tensors."""
    model = read_model(sound)
    one_expert = 4 * (3 * FF * WIDTH + FF)
    assert model.moe_layers == (1, 2)
    assert [layer.expert_bytes for layer in model.layers] == [0, one_expert, one_expert]
    assert [layer.routed_bytes for layer in model.layers] == [0, EXPERTS * one_expert, EXPERTS * one_expert]
    assert [layer.dense_bytes for layer in model.layers] == [32 * WIDTH * 4] * 3
    assert model.tensor_bytes == sum(int(t.n_bytes) for t in GGUFReader(sound).tensors)
    parts = model.embedding_bytes + model.other_bytes + sum(x.dense_bytes + x.routed_bytes for x in model.layers)
    assert parts == model.tensor_bytes


def test_tied_output_costs_the_embedding_once_more(sound: Path) -> None:
    """Without an output tensor llama.cpp copies the embedding to where the output layer lies."""
    model = read_model(sound)
    assert model.output_bytes == model.embedding_bytes == VOCAB * WIDTH * 4


def test_offsets_agree_with_the_gguf_library(sound: Path) -> None:
    """Our own walk finds every tensor where gguf's reader finds it."""
    ours = {t.name: (t.offset, t.n_bytes, t.shape) for t in read_header(sound).tensors}
    theirs = {t.name: (t.data_offset, t.n_bytes, tuple(int(n) for n in t.shape)) for t in GGUFReader(sound).tensors}
    assert ours == theirs


def test_kv_bytes_follow_heads_and_types(sound: Path) -> None:
    """2 KV heads of 16 in 3 layers: 192 values a token, K and V alike."""
    model = read_model(sound)
    assert model.kv_bytes_per_token(KvType.F16, KvType.F16) == 3 * 2 * 32 * 2
    assert model.kv_bytes_per_token(KvType.Q8_0, KvType.F16) == 3 * 32 * (8.5 + 16) / 8


def test_kv_heads_may_differ_by_layer(tmp_path: Path) -> None:
    """An array of head counts gives each layer its own cache size, and a layer without attention none."""
    model = read_model(write_model(tmp_path / "m.gguf", head_count_kv=[2, 0, 4]))
    assert [layer.k_values for layer in model.layers] == [32, 0, 64]


def test_mla_keeps_one_vector_a_token(tmp_path: Path) -> None:
    """With multi-head latent attention V is a view of K and costs nothing."""
    path = write_model(tmp_path / "m.gguf", head_count_kv=1, key_length=48, value_length=40, key_length_mla=24)
    model = read_model(path)
    assert model.is_mla
    assert [(layer.k_values, layer.v_values) for layer in model.layers] == [(48, 0)] * 3


def test_a_dense_model_has_no_moe_layers(tmp_path: Path) -> None:
    """A dense model is read like any other."""
    model = read_model(write_model(tmp_path / "dense.gguf", experts=0, arch="llama"))
    assert not model.is_moe
    assert model.n_expert == 0


def test_fingerprint_is_of_the_content(sound: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same fingerprint; other weights or other metadata have another."""
    copy = tmp_path / "elsewhere" / "renamed.gguf"
    copy.parent.mkdir()
    shutil.copy(sound, copy)
    original = read_model(sound).fingerprint
    assert read_model(copy).fingerprint == original
    assert read_model(write_model(tmp_path / "w.gguf", seed=2)).fingerprint != original
    assert read_model(write_model(tmp_path / "k.gguf", key_length=16)).fingerprint != original


def test_fingerprint_sees_every_byte_of_a_small_model(sound: Path, tmp_path: Path) -> None:
    """A small model is hashed whole: one changed byte anywhere in a tensor is another model."""
    content = bytearray(sound.read_bytes())
    tensor = max(read_header(sound).tensors, key=lambda t: t.n_bytes)
    content[tensor.offset + tensor.n_bytes // 2] ^= 1
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(content)
    assert read_model(changed).fingerprint != read_model(sound).fingerprint


def split(sound: Path, folder: Path) -> list[Path]:
    """The sound model cut in two as llama.cpp's own splitter does: metadata in the first shard."""
    reader = GGUFReader(sound)
    paths = [folder / f"tiny-0000{no}-of-00002.gguf" for no in (1, 2)]
    half = len(reader.tensors) // 2
    for no, (path, tensors) in enumerate(zip(paths, (reader.tensors[:half], reader.tensors[half:]), strict=True)):
        writer = GGUFWriter(path, "qwen3moe")
        if no == 0:
            for name, field in reader.fields.items():
                if name.startswith("GGUF.") or name == "general.architecture":
                    continue
                sub_type = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type)
        writer.add_uint16("split.no", no)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_any_shard_finds_the_others(sound: Path, tmp_path: Path) -> None:
    """Both shards name the same model, and it is the one the unsplit file holds."""
    first, second = split(sound, tmp_path)
    whole, by_first, by_second = read_model(sound), read_model(first), read_model(second)
    assert by_first == by_second
    assert by_second.paths == (first, second)
    assert by_second.layers == whole.layers
    assert by_second.fingerprint == whole.fingerprint


def test_a_missing_shard_is_named(sound: Path, tmp_path: Path) -> None:
    """The message says which file is not there."""
    first, second = split(sound, tmp_path)
    second.unlink()
    assert second.name in failure(first).cause


def test_a_renamed_shard_says_how_shards_are_named(sound: Path, tmp_path: Path) -> None:
    """A shard whose name lost its number cannot find the others."""
    first, _ = split(sound, tmp_path)
    assert "00001-of" in failure(first.rename(tmp_path / "model.gguf")).remedy


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"GGUF", "4 bytes"),
        (b"This is a text file, not a model at all.\n", "does not begin"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order"),
        (b"GGUF" + struct.pack("<IQQ", 77, 0, 0), "version 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + b"x" * 40, "name"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 40), "array"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 4) + b"\0" * 64, "unknown type"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture"),
    ],
)
def test_a_file_that_is_no_model_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    """Each kind of wrong file gives its own cause."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert said in failure(path).cause


def test_a_path_that_is_no_file_says_so(tmp_path: Path) -> None:
    """A missing file and a directory."""
    assert "no file" in failure(tmp_path / "none.gguf").cause
    assert "directory" in failure(tmp_path).cause


def test_a_truncated_file_says_it_is_cut_short(sound: Path, tmp_path: Path) -> None:
    """The header is whole and the last tensor is not."""
    path = tmp_path / "short.gguf"
    path.write_bytes(sound.read_bytes()[:-4000])
    assert "cut short" in failure(path).cause


@pytest.mark.parametrize(("key", "value"), [("block_count", 1 << 31), ("expert_count", 1 << 31)])
def test_absurd_metadata_is_refused(tmp_path: Path, key: str, value: int) -> None:
    """Counts that would need gigabytes to describe are an error, not an allocation."""
    path = write_model(tmp_path / "m.gguf")
    content = bytearray(path.read_bytes())
    at = content.index(f"qwen3moe.{key}".encode()) + len(f"qwen3moe.{key}") + 4
    content[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    assert key in failure(path).cause


def test_a_sparse_giant_of_empty_strings_is_refused_at_once(tmp_path: Path) -> None:
    """A file of 100 GB of zeros cannot make the reader walk billions of empty strings."""
    path = tmp_path / "giant.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 10**10))
        file.truncate(100 << 30)
    started = time.monotonic()
    assert "array" in failure(path).cause
    assert time.monotonic() - started < SECONDS_FOR_ONE_FILE


def outcome_of(path: Path) -> Model | MoetuneError:
    try:
        return read_model(path)
    except MoetuneError as error:
        return error


def test_damaged_files_never_do_harm(sound: Path, tmp_path: Path) -> None:
    """Any flipped byte or number, and any truncation, gives a model or one error, fast and within small memory."""
    content = sound.read_bytes()
    header_end = min(t.offset for t in read_header(sound).tensors)
    choose = random.Random(0)
    damaged: list[bytes] = []
    for at in range(0, header_end, 2):
        changed = bytearray(content)
        changed[at] ^= 1 << choose.randrange(8)
        damaged.append(bytes(changed))
    for at in range(8, header_end - 8, 7):
        changed = bytearray(content)
        changed[at : at + 8] = struct.pack("<Q", choose.choice([0, 1, 1 << 31, 1 << 63, (1 << 64) - 1]))
        damaged.append(bytes(changed))
    damaged += [content[:at] for at in range(0, header_end + 200, 11)]
    assert len(damaged) > 1000
    path = tmp_path / "damaged.gguf"
    kinds = set()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in damaged:
        path.write_bytes(case)
        started = time.monotonic()
        outcome = outcome_of(path)
        assert time.monotonic() - started < SECONDS_FOR_ONE_FILE
        kinds.add(type(outcome))
    assert kinds == {Model, MoetuneError}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200 * 1024
