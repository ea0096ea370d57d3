"""Records a pass: each workload's tokens once through the model, teacher-forced, in sequences that fit the context."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moetune.engine.config import EngineConfig
from moetune.engine.routing import Ids, RoutedBatch, RoutedLayer, Routing, WorkloadRouting
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError

# For one batch: only frees the terminal from an engine that hangs; a model read from disk may need many minutes.
_BATCH_LIMIT_S = 3600.0


@dataclass(frozen=True)
class WorkloadTokens:
    """What one workload is recorded on."""

    name: str
    tokens: tuple[int, ...]


def record(
    runner: EngineRunner,
    config: EngineConfig,
    model_fingerprint: str,
    workloads: Sequence[WorkloadTokens],
    recorded: Callable[[int], None],
) -> Routing:
    """Run every workload through the model; `recorded` hears of the tokens of each batch.

    Raises MoetuneError when the engine fails, or the model turns out to route nothing.
    """
    layers: tuple[RoutedLayer, ...] | None = None
    routed = []
    for workload in workloads:
        batches = []
        for begins, tokens in _batches(workload.tokens, config):
            batch = runner.route(config, tokens, begins=begins, time_limit_s=_BATCH_LIMIT_S)
            layers = layers or batch.layers
            if batch.layers != layers or len(batch.ids) != sum(layer.id_bytes(len(tokens)) for layer in layers):
                raise MoetuneError(
                    "The model's layers route differently from batch to batch, which cannot be recorded.",
                    "Please report this model; moetune search and moetune run work without a recording.",
                    ExitCode.ENGINE,
                )
            batches.append(batch)
            recorded(len(tokens))
        routed.append(WorkloadRouting(workload.name, _ids_of(batches)))
    return Routing(model_fingerprint, layers or (), tuple(routed))


def _batches(tokens: tuple[int, ...], config: EngineConfig) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """Whether a batch begins a sequence, and its tokens; in both the first position is left to the model's BOS."""
    for start in range(0, len(tokens), config.n_ctx - 1):
        sequence = tokens[start : start + config.n_ctx - 1]
        at = 0
        while at < len(sequence):
            n_batch = config.n_ubatch - 1 if at == 0 else config.n_ubatch
            yield at == 0, sequence[at : at + n_batch]
            at += n_batch


def _ids_of(batches: Sequence[RoutedBatch]) -> tuple[Ids, ...]:
    """Of each layer the ids of all batches, one after the other."""
    parts: list[list[Ids]] = [[] for _ in batches[0].layers]
    for batch in batches:
        at = 0
        for layer, of_layer in zip(batch.layers, parts, strict=True):
            n_bytes = layer.id_bytes(batch.n_tokens)
            ids = np.frombuffer(batch.ids, layer.id_type, count=n_bytes // layer.id_type.itemsize, offset=at)
            of_layer.append(ids.reshape(batch.n_tokens, layer.n_used))
            at += n_bytes
    return tuple(np.concatenate(of_layer) for of_layer in parts)
