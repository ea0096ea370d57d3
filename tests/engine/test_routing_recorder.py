"""What is recorded is what the routers chose: read through ggml's own structures, on many architectures."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moetune.demo import demo_model_path
from moetune.demo.measure import StockModel
from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.demo.synthetic.spec import BYTE_TOKENS
from moetune.engine.config import EngineConfig
from moetune.engine.library import ggml
from moetune.engine.routing import RoutedLayer, Routing
from moetune.engine.routing_pass import WorkloadTokens, record
from moetune.engine.routing_recorder import Tensor, read_ids
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError

CONFIG = EngineConfig(n_ctx=256, n_threads=1)
SMALL = SyntheticSpec(layers=4, experts=8, used=2, embd=128, ff=64, context=1024)
TOKENS = tuple(np.random.default_rng(0).integers(0, 512, 96).tolist())


def recorded(path: Path, tokens: tuple[int, ...] = TOKENS, config: EngineConfig = CONFIG) -> Routing:
    with EngineRunner(path) as runner:
        return record(runner, config, "0" * 32, (WorkloadTokens("w", tokens),), lambda _: None)


class _ContextParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@pytest.fixture
def graph() -> Iterator[ctypes.CDLL]:
    """ggml with a context in `graph.context`, whose tensors have no memory yet."""
    lib = ctypes.CDLL(ggml()._name)
    lib.ggml_init.argtypes, lib.ggml_init.restype = [_ContextParams], ctypes.c_void_p
    lib.ggml_free.argtypes = lib.ggml_backend_buffer_free.argtypes = [ctypes.c_void_p]
    for name, n_sizes in (("ggml_new_tensor_2d", 2), ("ggml_new_tensor_3d", 3)):
        function = getattr(lib, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int, *(ctypes.c_int64,) * n_sizes]
        function.restype = ctypes.c_void_p
    lib.ggml_mul_mat_id.argtypes, lib.ggml_mul_mat_id.restype = [ctypes.c_void_p] * 4, ctypes.c_void_p
    lib.ggml_view_2d.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_size_t] * 2
    lib.ggml_view_2d.restype = ctypes.c_void_p
    lib.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    lib.ggml_backend_alloc_ctx_tensors_from_buft.argtypes = [ctypes.c_void_p] * 2
    lib.ggml_backend_alloc_ctx_tensors_from_buft.restype = ctypes.c_void_p
    lib.ggml_backend_tensor_set.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2
    lib.context = lib.ggml_init(_ContextParams(1 << 20, None, True))
    yield lib
    lib.ggml_free(lib.context)


F32, I32 = 0, 26  # enum ggml_type


def test_the_layout_of_a_tensor_is_ggmls(graph: ctypes.CDLL) -> None:
    """Sizes, strides and operands of a product with experts are found where ggml itself puts them."""
    weights = graph.ggml_new_tensor_3d(graph.context, F32, 32, 48, 8)
    rows = graph.ggml_new_tensor_3d(graph.context, F32, 32, 2, 5)
    ids = graph.ggml_new_tensor_2d(graph.context, I32, 2, 5)
    product = Tensor.from_address(graph.ggml_mul_mat_id(graph.context, weights, rows, ids))
    assert list(product.src) == [weights, rows, ids, *[None] * 7]
    assert list(product.ne) == [48, 2, 5, 1]
    assert list(product.nb) == [4, 192, 384, 1920]
    assert (product.type, Tensor.from_address(ids).type) == (F32, I32)
    assert list(Tensor.from_address(weights).ne) == [32, 48, 8, 1]
    assert Tensor.from_address(weights).src[0] is None


def test_ids_are_read_through_a_strided_view(graph: ctypes.CDLL) -> None:
    """The chosen experts are the first few of a sorted row of all experts."""
    every = graph.ggml_new_tensor_2d(graph.context, I32, 6, 4)
    best = graph.ggml_view_2d(graph.context, every, 2, 4, 6 * 4, 0)
    buffer = graph.ggml_backend_alloc_ctx_tensors_from_buft(graph.context, graph.ggml_backend_cpu_buffer_type())
    values = np.arange(24, dtype=np.int32).reshape(4, 6)
    graph.ggml_backend_tensor_set(every, values.ctypes.data, 0, values.nbytes)
    try:
        assert read_ids(every).tolist() == values.tolist()
        assert read_ids(best).tolist() == values[:, :2].tolist()
    finally:
        graph.ggml_backend_buffer_free(buffer)


@pytest.mark.parametrize(
    "spec",
    [
        replace(SMALL, arch="qwen3moe"),
        replace(SMALL, arch="qwen3moe", experts=300, used=9),
        replace(SMALL, arch="deepseek2"),
        replace(SMALL, arch="qwen35moe", fused_gate_up=True),
        replace(SMALL, arch="llama4", used=1),
        replace(SMALL, arch="gpt-oss"),
        replace(SMALL, arch="gemma4"),
        replace(SMALL, arch="grovemoe"),
        replace(SMALL, arch="nemotron_h_moe", latent=64),
    ],
    ids=lambda spec: f"{spec.arch}-{spec.experts}",
)
def test_every_architecture_is_recorded_as_its_router_chose(spec: SyntheticSpec, tmp_path: Path) -> None:
    """Equal to the router's own sorted scores, read in another process from another node of the graph."""
    (path,) = write_synthetic(tmp_path / "m.gguf", spec)
    routing = recorded(path)
    with StockModel(path, context=256, threads=1) as model:
        chosen = model.decode(TOKENS).experts
    assert [layer.index for layer in routing.layers] == list(chosen)
    for layer, ids in zip(routing.layers, routing.workloads[0].ids, strict=True):
        assert (layer.n_expert, layer.n_used) == (spec.experts, spec.used)
        # grovemoe sorts a second time, for experts that stand for groups of these.
        np.testing.assert_array_equal(ids, chosen[layer.index][: len(TOKENS)])


def test_a_model_that_wants_bos_gets_it_and_it_is_not_recorded(tmp_path: Path) -> None:
    """Every sequence begins with it, as in real use; what is recorded is the text."""
    (path,) = write_synthetic(tmp_path / "m.gguf", SMALL)
    raw, key = path.read_bytes(), b"tokenizer.ggml.add_bos_token"
    value_at = raw.index(key) + len(key) + 4  # after the type of the value
    path.write_bytes(raw[:value_at] + b"\1" + raw[value_at + 1 :])
    routing = recorded(path)
    with StockModel(path, context=256, threads=1) as model:
        chosen = model.decode([BYTE_TOKENS, *TOKENS]).experts
    for layer, ids in zip(routing.layers, routing.workloads[0].ids, strict=True):
        np.testing.assert_array_equal(ids, chosen[layer.index][1:])


def test_leading_dense_layers_are_not_in_the_recording(tmp_path: Path) -> None:
    """deepseek2 begins with one; the others keep their own numbers."""
    (path,) = write_synthetic(tmp_path / "m.gguf", replace(SMALL, arch="deepseek2"))
    assert [layer.index for layer in recorded(path).layers] == [1, 2, 3]


def test_every_token_is_recorded_in_every_layer_whatever_the_batches_are(tmp_path: Path) -> None:
    """Also in the last layer, which without further ado sees only the tokens whose output is asked for."""
    (path,) = write_synthetic(tmp_path / "m.gguf", SMALL)
    tokens = TOKENS * 7
    routing = recorded(path, tokens, replace(CONFIG, n_ctx=256, n_ubatch=96))
    assert routing.layers == tuple(RoutedLayer(i, 8, 2) for i in range(4))
    assert routing.workloads[0].n_tokens == len(tokens)
    for counts in routing.counts[0]:
        assert counts.sum() == len(tokens) * 2


def test_a_sequence_begins_from_nothing(tmp_path: Path) -> None:
    """With a context of 97, BOS's place left free, each copy of the text is a sequence and is routed like the first."""
    (path,) = write_synthetic(tmp_path / "m.gguf", SMALL)
    for ids in recorded(path, TOKENS * 2, replace(CONFIG, n_ctx=len(TOKENS) + 1)).workloads[0].ids:
        np.testing.assert_array_equal(ids[: len(TOKENS)], ids[len(TOKENS) :])


def test_a_batch_of_tokens_is_routed_as_token_by_token_decoding_would() -> None:
    """On the trained demo model all but a few near-ties agree; sums in another order decide those."""
    with StockModel(demo_model_path(), context=256, threads=1) as model:
        tokens = tuple(model.tokenise("def read(path):\n    return open(path).read()\n" * 8)[:160])
        batched = recorded(demo_model_path(), tokens)
    one_by_one = recorded(demo_model_path(), tokens, replace(CONFIG, n_ubatch=2))
    for a, b in zip(batched.workloads[0].ids, one_by_one.workloads[0].ids, strict=True):
        assert np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)]) > 0.98


def test_a_dense_model_is_an_error(tmp_path: Path) -> None:
    """Nothing is recorded of it, and nothing hangs."""
    (path,) = write_synthetic(tmp_path / "m.gguf", replace(SMALL, arch="qwen3", experts=0))
    with pytest.raises(MoetuneError, match="no product with routed experts") as caught:
        recorded(path)
    assert caught.value.code is ExitCode.ENGINE


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    """Routing of a model that computes no numbers is not recorded."""
    (path,) = write_synthetic(tmp_path / "m.gguf", SMALL)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = b"\xff" * (len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    with pytest.raises(MoetuneError, match="not a number"):
        recorded(path)


def test_a_killed_engine_is_an_error_that_names_the_signal(tmp_path: Path) -> None:
    """kill -9 in the middle of a pass ends it with one error."""
    (path,) = write_synthetic(tmp_path / "m.gguf", SMALL)
    with EngineRunner(path) as runner:
        runner.route(CONFIG, TOKENS, begins=True, time_limit_s=60)
        assert runner.pid is not None
        killer = threading.Timer(0.2, os.kill, (runner.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(MoetuneError, match="SIGKILL"):
            record(runner, CONFIG, "0" * 32, (WorkloadTokens("w", TOKENS * 2000),), lambda _: None)
        killer.join()


def test_a_watched_context_serves_nothing_else(tmp_path: Path) -> None:
    """After a recording the same process measures in a context that nobody watches, and records again."""
    from moetune.engine.measurement import Measurement, Trace

    (path,) = write_synthetic(tmp_path / "m.gguf", SMALL)
    trace = Trace("t", (), TOKENS[:16], TOKENS[16:32], TOKENS[32:48])
    with EngineRunner(path) as runner:
        first = runner.route(CONFIG, TOKENS, begins=True, time_limit_s=60)
        assert isinstance(runner.measure(CONFIG, trace, passes=1, time_limit_s=60), Measurement)
        assert runner.route(CONFIG, TOKENS, begins=True, time_limit_s=60) == first
