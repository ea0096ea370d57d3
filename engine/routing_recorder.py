"""Reads every router's choice while unmodified llama.cpp computes. Lives in the worker process.

llama.cpp lets its caller look at a graph's nodes as they are computed (`cb_eval`). A routed FFN's products carry the
chosen experts as an operand, whatever the architecture did to choose them, so that is what is read.
"""

import ctypes
import re
from functools import cache

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from moetune.engine.library import ggml
from moetune.engine.routing import RoutedBatch, RoutedLayer, names_expert_twice

_EXPERTS = re.compile(rb"blk\.(\d{1,4})\.ffn_(?:gate|up|gate_up|down)_exps\.")
_PRODUCT = b"MUL_MAT_ID"  # operands: expert weights, activations, expert ids


class Tensor(ctypes.Structure):
    """The leading fields of `struct ggml_tensor` (ggml.h): ne are elements, nb strides in bytes, src the operands."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    ]


class BadRecord(ValueError):
    """The graph did not route as a Mixture-of-Experts model's does; the message says how."""


class RoutingRecorder:
    """Give `callback` to a context as `cb_eval`, decode, then `take` what was chosen. Must outlive the context."""

    def __init__(self) -> None:
        self.callback = llama.ggml_backend_sched_eval_callback(self._observe)
        self._watched: dict[int, bytes] = {}
        self._n_expert: dict[int, int] = {}
        self._chosen: dict[int, list[NDArray[np.int32]]] = {}

    def take(self, n_tokens: int) -> RoutedBatch:
        """The choices for the last `n_tokens` tokens decoded since the last `take`; forgets all of them.

        Raises BadRecord when nothing was routed, or a layer did not see every token.
        """
        chosen = {layer: np.concatenate(parts) for layer, parts in sorted(self._chosen.items())}
        self._chosen.clear()
        if not chosen:
            raise BadRecord("the model computed no product with routed experts")
        layers, ids = [], []
        n_decoded = max(len(rows) for rows in chosen.values())
        for index, rows in chosen.items():
            layer = RoutedLayer(index, self._n_expert[index], rows.shape[1])
            if not n_tokens <= len(rows) == n_decoded:
                raise BadRecord(f"layer {index} routed {len(rows)} of {max(n_decoded, n_tokens)} tokens")
            if rows.min() < 0 or rows.max() >= layer.n_expert:
                raise BadRecord(f"layer {index} chose an expert that is none of its {layer.n_expert}")
            wanted = rows[len(rows) - n_tokens :].astype(layer.id_type)
            if names_expert_twice(wanted):
                raise BadRecord(f"layer {index} chose an expert twice for one token")
            layers.append(layer)
            ids.append(wanted.tobytes())
        return RoutedBatch(tuple(layers), n_tokens, b"".join(ids))

    def _observe(self, node: int, asking: bool, _data: object) -> bool:
        # An exception in here would be lost; a choice that was not read is missed by `take`.
        if asking:
            return self._is_wanted(node)
        self._read(node)
        return True

    def _is_wanted(self, node: int) -> bool:
        """Whether this is its layer's first product with experts, in this graph and in all to come."""
        if _functions().ggml_op_desc(node) != _PRODUCT:
            return False
        name = _functions().ggml_get_name(Tensor.from_address(node).src[0])
        layer = _EXPERTS.match(name)
        return layer is not None and self._watched.setdefault(int(layer[1]), name) == name

    def _read(self, node: int) -> None:
        product = Tensor.from_address(node)
        weights = Tensor.from_address(product.src[0])
        layer = int(_EXPERTS.match(_functions().ggml_get_name(product.src[0]))[1])  # type: ignore[index]  # wanted, so named
        self._n_expert[layer] = weights.ne[2]
        self._chosen.setdefault(layer, []).append(read_ids(product.src[2]))


def read_ids(address: int) -> NDArray[np.int32]:
    """The i32 tensor [n_tokens, n_used] at `address`, which may be a strided view of a wider one."""
    tensor = Tensor.from_address(address)
    raw = np.empty(_functions().ggml_nbytes(address), np.uint8)
    _functions().ggml_backend_tensor_get(address, raw.ctypes.data, 0, raw.nbytes)
    shape, strides = (tensor.ne[1], tensor.ne[0]), (tensor.nb[1], tensor.nb[0])
    return np.ndarray(shape, np.int32, raw, strides=strides).copy()


@cache
def _functions() -> ctypes.CDLL:
    lib = ggml()
    lib.ggml_op_desc.argtypes, lib.ggml_op_desc.restype = [ctypes.c_void_p], ctypes.c_char_p
    lib.ggml_get_name.argtypes, lib.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    lib.ggml_nbytes.argtypes, lib.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    lib.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    lib.ggml_backend_tensor_get.restype = None
    return lib
