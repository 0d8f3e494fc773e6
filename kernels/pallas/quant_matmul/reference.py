"""The oracle: products with quantised weights in NumPy float64, dequantised exactly, with no shared code.

Slow and obvious on purpose; every implementation is compared with it.
"""

import numpy as np


def dequantise(values_FD, scales_GF) -> np.ndarray:
    """The weights [D, F] that the arrays of a `QuantWeight` stand for."""
    values = np.asarray(values_FD).astype(np.float64)
    scales = np.asarray(scales_GF).astype(np.float64)
    group = values.shape[1] // scales.shape[0]
    weights = np.empty(values.shape[::-1])
    for d in range(values.shape[1]):
        weights[d] = values[:, d] * scales[d // group]
    return weights


def matmul(x_TD, values_FD, scales_GF, row_scales_T=None) -> np.ndarray:
    """`x @ w`, float64 [T, F]; rows of x times `row_scales_T` if there are any."""
    x = np.asarray(x_TD).astype(np.float64)
    if row_scales_T is not None:
        x = x * np.asarray(row_scales_T).astype(np.float64)[:, None]
    return x @ dequantise(values_FD, scales_GF)
