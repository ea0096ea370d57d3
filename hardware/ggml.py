"""The part of ggml's public C interface that the probe calls, bound to the libraries llama.cpp has loaded."""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint8, c_void_p

from moetune.errors import ExitCode, MoetuneError

TYPE_F32 = 0
TYPE_F16 = 1
TYPE_Q4_0 = 2
TYPE_I8 = 24
TYPE_I32 = 26
STATUS_SUCCESS = 0


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class DeviceProps(ctypes.Structure):
    """``struct ggml_backend_dev_props``; the names and the id are owned by the device."""

    _fields_ = [
        ("name", c_char_p),
        ("description", c_char_p),
        ("memory_free", c_size_t),
        ("memory_total", c_size_t),
        ("type", c_int),
        ("device_id", c_char_p),
        ("async_compute", c_bool),
        ("host_buffer", c_bool),
        ("buffer_from_host_ptr", c_bool),
        ("events", c_bool),
        ("mmap_support", c_bool),
    ]


_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "ggml_version": (c_char_p, []),
    "ggml_commit": (c_char_p, []),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_new_tensor_1d": (c_void_p, [c_void_p, c_int, c_int64]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_new_tensor_3d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_mul_mat_id": (c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "ggml_sqr": (c_void_p, [c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buft_alloc_buffer": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_buffer_get_base": (c_void_p, [c_void_p]),
    "ggml_backend_buffer_get_type": (c_void_p, [c_void_p]),
    "ggml_backend_buffer_clear": (None, [c_void_p, c_uint8]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_dev_count": (c_size_t, []),
    "ggml_backend_dev_get": (c_void_p, [c_size_t]),
    "ggml_backend_dev_get_props": (None, [c_void_p, POINTER(DeviceProps)]),
    "ggml_backend_dev_init": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_buffer_type": (c_void_p, [c_void_p]),
    "ggml_backend_dev_host_buffer_type": (c_void_p, [c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
}


@functools.cache
def load_ggml() -> ctypes.CDLL:
    """ggml as libllama sees it, with every signature set.

    Looking the symbols up through libllama's own handle reaches the registry that llama.cpp uses. Opening
    ``libggml.so`` by path would load a second copy of it, with a registry of its own, because the wheel holds
    copies where other packages hold links.
    """
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as error:
        raise MoetuneError(
            f"llama.cpp could not be loaded: {error}", "Reinstall llama-cpp-python.", ExitCode.ENGINE
        ) from error
    # A handle of its own, so that the signatures set here and those set elsewhere do not overwrite each other.
    library = ctypes.CDLL(bindings._lib._name, handle=bindings._lib._handle)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise MoetuneError(
                f"This build of llama.cpp has no {name}.",
                "Install the version of llama-cpp-python that moetune requires.",
                ExitCode.ENGINE,
            ) from error
        function.restype = result
        function.argtypes = arguments
    return library


@contextmanager
def tensor_context(library: ctypes.CDLL, tensors: int, graph_nodes: int = 0) -> Iterator[int]:
    """A ggml context with room for ``tensors`` descriptions and one graph, and no data."""
    size = tensors * library.ggml_tensor_overhead()
    if graph_nodes:
        size += library.ggml_graph_overhead_custom(graph_nodes, False)
    context = library.ggml_init(InitParams(size + 1024, None, True))
    try:
        yield context
    finally:
        library.ggml_free(context)


@contextmanager
def allocated(library: ctypes.CDLL, context: int, buffer_type: int) -> Iterator[int | None]:
    """Memory for all tensors of ``context``, or None where the device has not that much."""
    buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
    try:
        yield buffer
    finally:
        if buffer:
            library.ggml_backend_buffer_free(buffer)
