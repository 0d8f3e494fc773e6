"""Dequantisation against scalar transcriptions of ggml-quants.c, and against the error that quantising may make."""

import struct

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from nanoserve.weights.gguf import read_tensor
from nanoserve.weights.gguf_header import read_header
from tests.weights.factories import write_gguf

# Of the largest value. The references compute in float64, the library in float32 with up to four roundings.
TOLERANCE = 4 * 2.0**-24


def half(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def q8_0(block: bytes) -> list[float]:
    return [half(block, 0) * q for q in struct.unpack_from("<32b", block, 2)]


def nibbles(packed: bytes) -> list[int]:
    """ggml's order: the low halves of all bytes, then the high halves."""
    return [q & 15 for q in packed] + [q >> 4 for q in packed]


def fifth_bits(block: bytes, at: int) -> list[int]:
    bits = struct.unpack_from("<I", block, at)[0]
    return [(bits >> i & 1) << 4 for i in range(32)]


def q4_0(block: bytes) -> list[float]:
    return [half(block, 0) * (q - 8) for q in nibbles(block[2:])]


def q4_1(block: bytes) -> list[float]:
    return [half(block, 0) * q + half(block, 2) for q in nibbles(block[4:])]


def q5_0(block: bytes) -> list[float]:
    return [
        half(block, 0) * ((q | high) - 16) for q, high in zip(nibbles(block[6:]), fifth_bits(block, 2), strict=True)
    ]


def q5_1(block: bytes) -> list[float]:
    pairs = zip(nibbles(block[8:]), fifth_bits(block, 4), strict=True)
    return [half(block, 0) * (q | high) + half(block, 2) for q, high in pairs]


def scale_and_min(scales: bytes, j: int) -> tuple[int, int]:
    """`get_scale_min_k4`: eight pairs of 6 bits in 12 bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4, (scales[j + 4] >> 4) | (scales[j] >> 6) << 4


def k_quant(block: bytes, quants: list[int]) -> list[float]:
    d, dmin, scales = half(block, 0), half(block, 2), block[4:16]
    values = []
    for i, q in enumerate(quants):
        scale, minimum = scale_and_min(scales, i // 32)
        values.append(d * scale * q - dmin * minimum)
    return values


def q4_k(block: bytes) -> list[float]:
    qs = block[16:]
    return k_quant(block, [q for i in range(0, 128, 32) for q in nibbles(qs[i : i + 32])])


def q5_k(block: bytes) -> list[float]:
    high, qs = block[16:48], block[48:]
    low = [q for i in range(0, 128, 32) for q in nibbles(qs[i : i + 32])]
    return k_quant(block, [q | (high[i % 32] >> i // 32 & 1) << 4 for i, q in enumerate(low)])


def q6_k(block: bytes) -> list[float]:
    low, high, scales, d = block[:128], block[128:192], struct.unpack_from("<16b", block, 192), half(block, 208)
    values = [0.0] * 256
    for n in range(2):
        for i in range(32):
            for quarter in range(4):
                byte = low[64 * n + i + 32 * (quarter % 2)]
                nibble = byte >> 4 if quarter >= 2 else byte & 15
                q = (nibble | (high[32 * n + i] >> 2 * quarter & 3) << 4) - 32
                values[128 * n + 32 * quarter + i] = d * scales[8 * n + 2 * quarter + i // 16] * q
    return values


# Reference, and where in a block its half-precision numbers are.
REFERENCES = {
    "Q8_0": (q8_0, (0,)),
    "Q4_0": (q4_0, (0,)),
    "Q4_1": (q4_1, (0, 2)),
    "Q5_0": (q5_0, (0,)),
    "Q5_1": (q5_1, (0, 2)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (q5_k, (0, 2)),
    "Q6_K": (q6_k, (208,)),
}


def read_back(path, raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Writes `raw` as the only tensor of a GGUF file and reads it as nanoserve does."""
    header = read_header(write_gguf(path, "llama", {}, {"t": raw}, {"t": kind}))
    return read_tensor(path, header.tensors["t"])


@pytest.mark.parametrize("name", REFERENCES)
def test_every_bit_of_a_block_means_what_ggml_says(tmp_path, name):
    kind = GGMLQuantizationType[name]
    reference, halves = REFERENCES[name]
    items, nbytes = GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(len(name))
    rows, blocks = 3, 2
    raw = generator.integers(0, 256, (rows, blocks, nbytes), np.uint8)
    for at in halves:
        scale = generator.uniform(-2, 2, (rows, blocks, 1)).astype("<f2")
        raw[:, :, at : at + 2] = scale.view(np.uint8)
    expected = np.array([[x for block in row for x in reference(block.tobytes())] for row in raw])
    found = read_back(tmp_path / "t.gguf", raw.reshape(rows, -1), kind)
    assert (found.shape, found.dtype) == ((rows, blocks * items), np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# Largest error over a block's largest magnitude: half a step, or a whole one where one end of the range is missing, and
# the rounding of the scale to half precision.
QUANTISING_ERROR = {"Q8_0": 0.5 / 127, "Q4_0": 1 / 8, "Q4_1": 0.5 * 2 / 15, "Q5_0": 1 / 16, "Q5_1": 0.5 * 2 / 31}
HALF_PRECISION_SLACK = 2e-3


@pytest.mark.parametrize("name", QUANTISING_ERROR)
def test_quantised_values_come_back_within_a_step(tmp_path, name):
    kind = GGMLQuantizationType[name]
    values = np.random.default_rng(1).standard_normal((16, 64), np.float32)
    found = read_back(tmp_path / "t.gguf", quantize(values, kind), kind)
    magnitude = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True)
    error = np.abs(found - values).reshape(-1, 32) / magnitude
    assert error.max() <= QUANTISING_ERROR[name] + HALF_PRECISION_SLACK


def test_a_scale_of_infinity_is_passed_on_without_a_warning(tmp_path, recwarn):
    raw = np.full((1, 34), 0xFF, np.uint8)
    raw[0, :2] = np.array([np.inf], "<f2").view(np.uint8)
    assert np.isneginf(read_back(tmp_path / "t.gguf", raw, GGMLQuantizationType.Q8_0)).all()
    assert not recwarn.list
