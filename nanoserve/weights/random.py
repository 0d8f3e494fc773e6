"""Random weights of any llama-style model, for runs and tests where only the shape matters.

Invariants: a tensor depends on (seed, its name, its shape) alone, so neither the order of reads nor the other tensors
change it; activations keep their scale, because matrices have variance 1 / fan_in and norms multiply by 1.

`RandomTensors` are drawn on the host and are the same everywhere; `DrawnOnDevices` are only named here, and drawn by
`model.random_params`: a host would take minutes to draw what a large model's chips can draw by themselves.
"""

import dataclasses
import hashlib
import zlib
from typing import override

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights import names
from nanoserve.weights.types import TensorSource


class RandomTensors(TensorSource):
    """Every tensor of `spec`, drawn when it is read.

    Args:
      spec: a llama-style model.
      seed: 0 to 2**64 - 1.
      dtype: of the arrays; drawn in float32 and rounded.

    Raises:
      WeightsError: the model is not a llama-style one.
      ConfigError: the seed is out of range.
    """

    def __init__(self, spec: ModelSpec, seed: int, dtype: DTypeLike = ml_dtypes.bfloat16):
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed = {seed} of random weights must be in [0, 2**64)")
        self._shapes = dict(names.tensor_shapes(spec))
        self._seed, self._dtype = seed, np.dtype(dtype)
        self._norm = 0.0 if spec.zero_centred_norms else 1.0
        self.description = f"random weights of {spec.name}, seed {seed}"

    @override
    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise names.unknown_tensor(self, name)
        return self._shapes[name]

    @override
    def read(self, name: str) -> np.ndarray:
        shape = self.shape(name)
        if len(shape) == 1 and name.endswith(".weight"):
            return np.full(shape, self._norm, self._dtype)
        generator = np.random.Generator(
            np.random.Philox(key=np.array([self._seed, zlib.crc32(name.encode())], np.uint64))
        )
        drawn = generator.standard_normal(shape, np.float32)
        drawn *= np.float32(shape[-1] ** -0.5)
        return drawn.astype(self._dtype)

    @override
    def fingerprint(self) -> str:
        listing = f"{self._seed} {self._dtype} {sorted(self._shapes.items())}"
        return "random-" + hashlib.sha256(listing.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class DrawnOnDevices:
    """Random weights that no host ever has: known by model and seed, drawn where they will live.

    Attributes:
      spec: the model. seed: of JAX's generator, 0 to 2**32 - 1.

    Raises:
      ConfigError: the seed is out of range.
    """

    spec: ModelSpec
    seed: int

    def __post_init__(self):
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed = {self.seed} of weights that are drawn on devices must be in [0, 2**32)")

    @property
    def description(self) -> str:
        """One line for logs."""
        return f"random weights of {self.spec.name} drawn on the devices, seed {self.seed}"

    def fingerprint(self) -> str:
        """Identifies the weights in records; equal ones mean equal weights on devices of the same kind."""
        return "drawn-" + hashlib.sha256(f"{self.seed} {self.spec}".encode()).hexdigest()
