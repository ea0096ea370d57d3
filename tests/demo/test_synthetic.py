"""Synthetic models: every architecture loads in unmodified llama.cpp, routes by token, and is what was asked for."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from moetune.demo.measure import StockModel, lru_hit_rate, top_share
from moetune.demo.synthetic import ARCHITECTURES, STORAGE_TYPES, SyntheticSpec, synthetic_bytes, write_synthetic
from moetune.demo.synthetic.blocks import random_tensor

TOKENS = np.random.default_rng(0).integers(0, 512, 96).tolist()
SMALL = SyntheticSpec(layers=4, experts=8, used=2, embd=128, ff=64)
ROUTED = sorted(name for name, a in ARCHITECTURES.items() if a.routed and not a.encoder)


def small(arch: str) -> SyntheticSpec:
    return replace(SMALL, arch=arch, experts=SMALL.experts if ARCHITECTURES[arch].routed else 0)


@pytest.mark.parametrize("arch", ROUTED)
def test_every_architecture_decodes_and_routes_by_token(arch: str, tmp_path: Path) -> None:
    """Logits are finite and vary, change with the input, and several experts share the work."""
    write_synthetic(tmp_path / "m.gguf", small(arch))
    with StockModel(tmp_path / "m.gguf", context=128) as model:
        first = model.decode(TOKENS)
        other = model.decode([*TOKENS[:-1], (TOKENS[-1] + 1) % 512])
        assert np.isfinite(first.logits).all()
        assert 0.5 < first.logits.std() < 5
        assert len(set(first.logits.argmax(axis=1).tolist())) > 8
        np.testing.assert_allclose(first.logits[:-1], other.logits[:-1], atol=1e-3)
        assert np.abs(first.logits[-1] - other.logits[-1]).max() > 0.5
        assert first.experts
        for ids in first.experts.values():
            assert len(np.unique(ids)) >= 6


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_dense_models_decode_without_a_router(arch: str, tmp_path: Path) -> None:
    """With no experts the file is an ordinary dense model."""
    write_synthetic(tmp_path / "m.gguf", replace(SMALL, arch=arch, experts=0))
    with StockModel(tmp_path / "m.gguf", context=128) as model:
        decoded = model.decode(TOKENS)
        assert np.isfinite(decoded.logits).all()
        assert decoded.experts == {}


def test_encoder_yields_finite_embeddings(tmp_path: Path) -> None:
    """nomic-bert-moe has no logits; its embeddings differ from token to token."""
    write_synthetic(tmp_path / "m.gguf", small("nomic-bert-moe"))
    with StockModel(tmp_path / "m.gguf", context=128) as model:
        embeddings = model.encode(TOKENS)
        assert np.isfinite(embeddings).all()
        assert embeddings.std(axis=0).mean() > 0.1


@pytest.mark.parametrize(
    "arch", ["qwen3moe", "deepseek2", "gpt-oss", "gemma4", "llama4", "nemotron_h_moe", "deepseek4", "kimi-k3"]
)
def test_a_wrong_expert_changes_the_logits(arch: str, tmp_path: Path) -> None:
    """Experts say different things and are heard: rotating one layer's experts is visible."""
    path = tmp_path / "m.gguf"
    write_synthetic(path, small(arch))
    with StockModel(path, context=128) as model:
        before = model.decode(TOKENS).logits
    reader = GGUFReader(path, "r+")
    down = next(t for t in reader.tensors if t.name.endswith("ffn_down_exps.weight"))
    down.data[:] = np.roll(down.data, 1, axis=0)
    reader.data.flush()
    with StockModel(path, context=128) as model:
        after = model.decode(TOKENS).logits
    assert np.abs(before - after).mean() > 0.2


@pytest.mark.parametrize("arch", ["cohere2moe", "deepseek2", "gemma4", "qwen35moe", "qwen3next"])
def test_fused_gate_and_up_load_as_one_tensor(arch: str, tmp_path: Path) -> None:
    """The fused layout replaces both tensors and decodes."""
    write_synthetic(tmp_path / "m.gguf", replace(small(arch), fused_gate_up=True))
    names = {t.name for t in GGUFReader(tmp_path / "m.gguf").tensors}
    assert "blk.1.ffn_gate_up_exps.weight" in names
    assert "blk.1.ffn_up_exps.weight" not in names
    with StockModel(tmp_path / "m.gguf", context=128) as model:
        assert np.isfinite(model.decode(TOKENS).logits).all()


def test_latent_experts_and_expert_scales_load(tmp_path: Path) -> None:
    """The two options that add tensors are read by llama.cpp: they change what it computes."""
    for name, plain, other in (
        ("latent", small("nemotron_h_moe"), replace(small("nemotron_h_moe"), latent=64)),
        ("narrow", small("kimi-k3"), replace(small("kimi-k3"), latent=64)),
        ("scales", SMALL, replace(SMALL, expert_scales=True)),
    ):
        logits = []
        for i, spec in enumerate((plain, other)):
            write_synthetic(tmp_path / f"{name}{i}.gguf", spec)
            with StockModel(tmp_path / f"{name}{i}.gguf", context=128) as model:
                logits.append(model.decode(TOKENS).logits)
        assert np.isfinite(logits[1]).all()
        assert np.abs(logits[0] - logits[1]).mean() > 0.05


@pytest.mark.parametrize("quant", STORAGE_TYPES)
def test_storage_types_have_the_asked_moments(quant: str) -> None:
    """Dequantised by the reference implementation, weights have mean about 0 and the asked deviation."""
    data = random_tensor(np.random.default_rng(1), (64, 512), quant, 0.05)
    weights = quants.dequantize(data, GGMLQuantizationType[quant])
    assert weights.shape == (64, 512)
    assert abs(weights.mean()) < 0.006
    assert weights.std() == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize("quant", STORAGE_TYPES)
def test_storage_types_decode(quant: str, tmp_path: Path) -> None:
    """llama.cpp computes with each type, with others for the down projection and for every second layer."""
    mixed = {"quant": quant, "quant_down": "Q6_K", "quant_odd": "IQ4_NL", "quant_dense": "Q8_0"}
    spec = replace(SMALL, layers=2, embd=256, ff=256, **mixed)
    write_synthetic(tmp_path / "m.gguf", spec)
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.0.ffn_up_exps.weight"] == quant
    assert types["blk.0.ffn_down_exps.weight"] == "Q6_K"
    assert types["blk.1.ffn_up_exps.weight"] == types["blk.1.ffn_down_exps.weight"] == "IQ4_NL"
    with StockModel(tmp_path / "m.gguf", context=128) as model:
        assert np.isfinite(model.decode(TOKENS).logits).all()


@pytest.mark.parametrize("arch", ["qwen3moe", "glm4moe", "gpt-oss"])
def test_measured_skew_grows_with_skew(arch: str, tmp_path: Path) -> None:
    """The share of the busiest fifth of experts rises with the setting, from nearly flat to nearly all."""
    shares = []
    for skew in (0.0, 0.5, 1.0, 2.0, 4.0):
        write_synthetic(tmp_path / "m.gguf", SyntheticSpec(arch=arch, layers=2, experts=40, used=4, skew=skew))
        with StockModel(tmp_path / "m.gguf", context=256) as model:
            tokens = np.random.default_rng(3).integers(0, 512, 256).tolist()
            last = max(model.decode(tokens).experts.items())[1]
            shares.append(top_share(last, 8, 40))
    assert shares == sorted(shares)
    assert shares[0] < 0.35
    assert shares[-1] > 0.75


def test_drift_gives_each_topic_its_own_favourites(tmp_path: Path) -> None:
    """Two topics agree on their busiest experts without drift and differ with it."""
    shared = {}
    for drift in (0.0, 1.0):
        spec = SyntheticSpec(layers=2, experts=32, used=4, skew=2.0, drift=drift)
        write_synthetic(tmp_path / "m.gguf", spec)
        with StockModel(tmp_path / "m.gguf", context=256) as model:
            hot = []
            for topic in (0, 3):
                tokens = np.random.default_rng(4).integers(topic * 128, topic * 128 + 128, 256).tolist()
                counts = np.bincount(model.decode(tokens).experts[1].ravel(), minlength=32)
                hot.append(set(np.argsort(-counts)[:6].tolist()))
            shared[drift] = len(hot[0] & hot[1])
    assert shared[0.0] >= 4
    assert shared[1.0] <= 3


def test_split_files_load_as_one_model(tmp_path: Path) -> None:
    """The parts hold every tensor once and llama.cpp computes the same as from one file."""
    whole = write_synthetic(tmp_path / "m.gguf", SMALL)
    parts = write_synthetic(tmp_path / "s.gguf", replace(SMALL, split=3))
    assert [p.name for p in whole] == ["m.gguf"]
    assert [p.name for p in parts] == [f"s-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    logits = []
    for path in (whole[0], parts[0]):
        with StockModel(path, context=128) as model:
            logits.append(model.decode(TOKENS).logits)
    np.testing.assert_array_equal(logits[0], logits[1])


def test_same_spec_gives_same_bytes(tmp_path: Path) -> None:
    """Files are reproducible, and the seed matters."""
    for name, spec in (("a", SMALL), ("b", SMALL), ("c", replace(SMALL, seed=1))):
        write_synthetic(tmp_path / name, spec)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_planned_size_is_the_written_size(tmp_path: Path) -> None:
    """The byte count without writing covers all but the header."""
    path = write_synthetic(tmp_path / "m.gguf", SMALL)[0]
    assert 0 < path.stat().st_size - synthetic_bytes(SMALL) < 64_000


def test_any_text_round_trips(tmp_path: Path) -> None:
    """The byte-level vocabulary encodes what it never saw."""
    write_synthetic(tmp_path / "m.gguf", replace(SMALL, vocab=600))
    text = "the ether: naïve 猫 \t\n{}[]~\x7f 🙂"
    with StockModel(tmp_path / "m.gguf", context=128) as model:
        tokens = model.tokenise(text)
        assert model.text(tokens) == text.encode()
        assert len(tokens) < len(text.encode())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"arch": "nosuch"}, "arch"),
        ({"quant": "Q4_K"}, "embd"),
        ({"quant_down": "Q6_K"}, "ff"),
        ({"used": 9}, "used"),
        ({"vocab": 100}, "vocab"),
        ({"fused_gate_up": True}, "fused_gate_up"),
        ({"latent": 64}, "latent"),
        ({"arch": "glm4moe", "experts": 0}, "experts"),
        ({"arch": "qwen3"}, "experts"),
        ({"drift": 2.0}, "drift"),
        ({"split": 10_000}, "split"),
    ],
)
def test_impossible_specs_name_the_field(change: dict[str, object], word: str, tmp_path: Path) -> None:
    """What cannot be built is refused before anything is written."""
    with pytest.raises(ValueError, match=word):
        write_synthetic(tmp_path / "m.gguf", replace(SMALL, **change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_command_line_writes_and_refuses(tmp_path: Path) -> None:
    """The module is a command; a mistake is one line and status 1."""
    command = [sys.executable, "-m", "moetune.demo.synthetic", str(tmp_path / "m.gguf"), "--layers", "1"]
    done = subprocess.run([*command, "--experts", "8", "--skew", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert str(tmp_path / "m.gguf") in done.stdout
    failed = subprocess.run([*command, "--arch", "nosuch"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: arch")
    assert "Traceback" not in failed.stderr


def test_share_and_hit_rate_on_known_routes() -> None:
    """The two routing figures, by hand."""
    ids = np.array([[0, 1], [0, 2], [0, 1], [3, 0]], np.int32)
    assert top_share(ids, 1, 8) == 0.5
    assert lru_hit_rate(ids, 2) == pytest.approx(2 / 8)
    assert lru_hit_rate(ids, 8) == pytest.approx(4 / 8)
