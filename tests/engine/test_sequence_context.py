"""Several sequences in one context: none sees another, whatever kind of memory the model has."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from numpy.typing import NDArray

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import EngineConfig
from moetune.engine.model_handle import ModelHandle
from moetune.engine.native_log import silence
from moetune.engine.sequence_context import RowToken, SequenceContext

CONFIG = EngineConfig(n_ctx=256, n_threads=1, n_ubatch=32, repack=False)
N_WRITTEN = 12
TEXTS = [[int(t) for t in np.random.default_rng(seed).integers(0, 250, n)] for seed, n in enumerate((20, 45, 33))]
# Of a window, a recurrent state, both in turn with attention, and latent attention; and the usual kind.
ARCHITECTURES = ["qwen3moe", "gpt-oss", "gemma4", "qwen3next", "nemotron_h_moe", "deepseek2"]


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelHandle]:
    path = tmp_path / "model.gguf"
    write_synthetic(path, SyntheticSpec(arch=request.param))
    handle = ModelHandle(path, silence(), CONFIG)
    yield handle
    handle.close()


def logits(model: ModelHandle, index: int) -> NDArray[np.float32]:
    pointer = llama.llama_get_logits_ith(model.context, index)
    return np.array(np.ctypeslib.as_array(pointer, shape=(model.n_vocab,)))


def read(model: ModelHandle, context: SequenceContext, row: int, n_kept: int = 0) -> NDArray[np.float32]:
    """Logits after the row's prompt, of which the first `n_kept` tokens are there already."""
    prompt = TEXTS[row][:-N_WRITTEN]
    for start in range(n_kept, len(prompt), context.n_batch):
        piece = range(start, min(start + context.n_batch, len(prompt)))
        context.read([RowToken(row, prompt[i], i, output=i == len(prompt) - 1) for i in piece])
    return logits(model, len(piece) - 1)


def teacher_forced(model: ModelHandle, context: SequenceContext, rows: Sequence[int]) -> NDArray[np.float32]:
    """Logits [row, step, vocabulary] of the rows' texts: after each prompt, then after each further token."""
    steps = [[read(model, context, row) for row in rows]]
    for k in range(N_WRITTEN):
        at = {row: len(TEXTS[row]) - N_WRITTEN + k for row in rows}
        context.write([RowToken(row, TEXTS[row][at[row]], at[row], output=True) for row in rows])
        steps.append([logits(model, i) for i in range(len(rows))])
    return np.array(steps).swapaxes(0, 1)


def test_a_sequence_computes_beside_others_what_it_computes_alone(model: ModelHandle) -> None:
    """After the prompt bit for bit; then as near as kernels for one and for several tokens are to each other."""
    context = SequenceContext(model, CONFIG, len(TEXTS), silence())
    together = teacher_forced(model, context, range(len(TEXTS)))
    context.close()
    for row in range(len(TEXTS)):
        context = SequenceContext(model, CONFIG, len(TEXTS), silence())
        (alone,) = teacher_forced(model, context, [row])
        context.close()
        assert np.array_equal(together[row, 0], alone[0])
        # Logits of these models deviate by 2; whoever sees another's cells is off by that at every step.
        off = np.abs(together[row] - alone).max(axis=1)
        assert np.median(off) < 0.1


def test_a_row_is_as_new_after_another_text(model: ModelHandle) -> None:
    """Its cells are gone, and nothing of a recurrent state or a window is left."""
    context = SequenceContext(model, CONFIG, len(TEXTS), silence())
    first = read(model, context, 1)
    assert context.cells(1) > 0
    assert not context.keep(1, 0)
    assert context.cells(1) == 0
    assert np.array_equal(first, read(model, context, 1))
    context.close()


def test_what_is_kept_of_a_text_serves_as_if_computed_anew(model: ModelHandle) -> None:
    """Where memory can be cut; where not, all is gone and it says so."""
    context = SequenceContext(model, CONFIG, len(TEXTS), silence())
    (first,) = teacher_forced(model, context, [1])
    kept = context.n_batch if context.keep(1, context.n_batch) else 0
    assert context.cells(1) == kept
    assert np.array_equal(first[0], read(model, context, 1, kept))
    context.close()
