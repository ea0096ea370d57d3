"""Which experts a model's routers chose: one teacher-forced pass over one or more workloads' text."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, with_config

Ids = NDArray[np.unsignedinteger]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class RoutedLayer:
    """One layer with routed experts. index: the N of its tensors' names, blk.N; n_used: experts a token."""

    index: int
    n_expert: int
    n_used: int

    @property
    def id_type(self) -> np.dtype[np.unsignedinteger]:
        """The narrowest type that holds the layer's expert ids, little-endian: how they travel and are kept."""
        return np.dtype("u1") if self.n_expert <= 256 else np.dtype("<u2")

    def id_bytes(self, n_tokens: int) -> int:
        """Bytes that the ids of so many tokens take."""
        return n_tokens * self.n_used * self.id_type.itemsize


@with_config(ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
@dataclass(frozen=True)
class RoutedBatch:
    """What one batch of tokens chose. ids: of each layer in turn n_tokens x n_used ids, token-major, as `id_type`."""

    layers: tuple[RoutedLayer, ...]
    n_tokens: int
    ids: bytes


@dataclass(frozen=True, eq=False)
class WorkloadRouting:
    """One workload's routing. ids: of each layer [n_tokens, n_used], the router's favourite first."""

    name: str
    ids: tuple[Ids, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens recorded, the same in every layer."""
        return len(self.ids[0])


@dataclass(frozen=True, eq=False)
class Routing:
    """A recorded pass. model_fingerprint: `Model.fingerprint`; the order of `layers` is that of every `ids`."""

    model_fingerprint: str
    layers: tuple[RoutedLayer, ...]
    workloads: tuple[WorkloadRouting, ...]

    @cached_property
    def counts(self) -> tuple[tuple[Counts, ...], ...]:
        """By workload and layer: how often each expert was chosen, [n_expert]."""
        return tuple(
            tuple(count(ids, layer.n_expert) for layer, ids in zip(self.layers, workload.ids, strict=True))
            for workload in self.workloads
        )


def names_expert_twice(ids: Ids) -> bool:
    """Whether some token chose the same expert twice, which no router does."""
    in_order = np.sort(ids, axis=1)
    return bool((in_order[:, 1:] == in_order[:, :-1]).any())


def count(ids: Ids, n_expert: int) -> Counts:
    """How often each expert stands in `ids`, [n_expert]."""
    return np.bincount(ids.ravel(), minlength=n_expert).astype(np.int64)
