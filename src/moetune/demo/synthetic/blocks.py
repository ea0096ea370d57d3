"""Random tensors in ggml's storage types, made block by block: no float copy of a big tensor ever exists.

Every generator draws weights with mean zero (nearly, for IQ4_NL, whose code book is not symmetric) and the asked
standard deviation. Block layouts follow ggml-common.h.
"""

import math

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

_IQ4_NL_CODES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)
_MXFP4_CODES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float64)
# What the bytes 0 to 126 mean as unsigned floats of 4 and 3 bits, halved because the codes are doubled.
_UE4M3 = np.array([(b % 8 / 8 + (b >= 8)) * 2.0 ** (max(b // 8, 1) - 8) for b in range(127)])
_UNIFORM_4_BIT_STD = math.sqrt((16**2 - 1) / 12)
_UNIFORM_6_BIT_STD = math.sqrt((64**2 - 1) / 12)
_UNIFORM_BYTE_STD = math.sqrt((255**2 - 1) / 12)
# Six-bit scales of the K types are drawn from this range; a constant would hide a mistake in unpacking them.
_SCALE_LOW, _SCALE_HIGH = 24, 63
_SCALE_RMS = math.sqrt(sum(s * s for s in range(_SCALE_LOW, _SCALE_HIGH + 1)) / (_SCALE_HIGH + 1 - _SCALE_LOW))


def random_tensor(rng: np.random.Generator, shape: tuple[int, ...], quant: str, std: float) -> NDArray[np.generic]:
    """Random weights: float arrays of ``shape``, or for block types uint8 with the last axis in bytes."""
    if quant == "F32":
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
    if quant == "F16":
        return (rng.standard_normal(shape, dtype=np.float32) * np.float32(std)).astype(np.float16)
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[quant]]
    data = _BLOCK_MAKERS[quant](rng, math.prod(shape) // block, std)
    return data.reshape(*shape[:-1], shape[-1] // block * block_bytes)


def _random_bytes(rng: np.random.Generator, blocks: int, count: int) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(blocks * count), np.uint8).reshape(blocks, count)


def _half(value: float, blocks: int) -> NDArray[np.uint8]:
    return np.tile(np.array([value], np.float16).view(np.uint8), (blocks, 1))


def _q8_0(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    # -128 never occurs in a quantised file, and some kernels negate.
    codes = rng.integers(-127, 128, (blocks, 32), np.int8).view(np.uint8)
    return np.hstack([_half(std / _UNIFORM_BYTE_STD, blocks), codes])


def _q4_0(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    return np.hstack([_half(std / _UNIFORM_4_BIT_STD, blocks), _random_bytes(rng, blocks, 16)])


def _iq4_nl(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    return np.hstack([_half(std / float(_IQ4_NL_CODES.std()), blocks), _random_bytes(rng, blocks, 16)])


def _mxfp4(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    # The scale is a power of two, so a fraction of the blocks takes the next one to hit the variance between.
    ratio = std / math.sqrt(float((_MXFP4_CODES**2).mean()))
    low = math.floor(math.log2(ratio))
    upper_share = ((ratio / 2.0**low) ** 2 - 1) / 3
    exponent = (rng.random((blocks, 1)) < upper_share) + low + 128
    return np.hstack([exponent.astype(np.uint8), _random_bytes(rng, blocks, 16)])


def _nvfp4(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    # Scales of 16 values each are 8-bit floats; a fraction takes the next larger one to hit the variance between.
    ratio = std / math.sqrt(float((_MXFP4_CODES**2).mean()))
    low = int(np.searchsorted(_UE4M3, ratio, side="right")) - 1
    upper_share = (ratio**2 - _UE4M3[low] ** 2) / (_UE4M3[low + 1] ** 2 - _UE4M3[low] ** 2)
    scales = (rng.random((blocks, 4)) < upper_share) + low
    return np.hstack([scales.astype(np.uint8), _random_bytes(rng, blocks, 32)])


def _q4_k(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    scale = rng.integers(_SCALE_LOW, _SCALE_HIGH + 1, (blocks, 8), np.uint8)
    # A minimum equal to the scale, in units of 7.5 d, centres the codes 0 to 15.
    d = std / _UNIFORM_4_BIT_STD / _SCALE_RMS
    low, high = scale[:, :4], scale[:, 4:]
    first = low | (high >> 4 << 6)
    nibbles = (high & 15) | ((high & 15) << 4)
    return np.hstack([_half(d, blocks), _half(7.5 * d, blocks), first, first, nibbles, _random_bytes(rng, blocks, 128)])


def _q6_k(rng: np.random.Generator, blocks: int, std: float) -> NDArray[np.uint8]:
    scale = rng.integers(_SCALE_LOW, _SCALE_HIGH + 1, (blocks, 16), np.int8).view(np.uint8)
    d = std / _UNIFORM_6_BIT_STD / _SCALE_RMS
    return np.hstack([_random_bytes(rng, blocks, 192), scale, _half(d, blocks)])


_BLOCK_MAKERS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4, "NVFP4": _nvfp4}
_BLOCK_MAKERS |= {"Q4_K": _q4_k, "Q6_K": _q6_k}
