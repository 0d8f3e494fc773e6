"""A quantised weight matrix as arrays.

One layout for every scheme and chip: `values[F, D]`, an output channel's weights side by side, and `scales[G, F]` for
the G groups along D. Weights of a layer stack have leading axes on both. Why D is innermost:

- wgmma takes 8-bit operands only with the summed axis innermost, and takes a dequantised operand from registers only
  as rows of output channels, which is then how they are loaded: nothing is transposed on the way.
- A TPU's matrix unit multiplies by a transposed matrix as it is loaded, and a row of tiles is one contiguous copy.

4-bit values are `jnp.int4`: two neighbours along D to a byte, the first in its low half. XLA packs such arrays in
memory on both chips, and both kernel compilers read them without help.

Next: `quantise` (from floats and back), `api` (products).
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

BITS = {"int4": 4, "int8": 8, "float8_e4m3fn": 8}


@flax.struct.dataclass
class QuantWeight:
    """A matrix [D, F] whose element (d, f) is `values[f, d] * scales[d // group, f]`.

    Attributes:
      values: int8, int4 or float8_e4m3fn.
      scales: float32 or bfloat16; G = 1 is a scale per output channel.
    """

    values: Num[Array, "*L F D"]
    scales: Float[Array, "*L G F"]

    @property
    def inputs(self) -> int:
        """D."""
        return self.values.shape[-1]

    @property
    def outputs(self) -> int:
        """F."""
        return self.values.shape[-2]

    @property
    def groups(self) -> int:
        """G."""
        return self.scales.shape[-2]

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.inputs // self.groups

    @property
    def layers(self) -> int | None:
        """L of a stack of layers; None of a single matrix."""
        return self.values.shape[0] if self.values.ndim == 3 else None

    @property
    def kind(self) -> str:
        """Name of the values' dtype."""
        return jnp.dtype(self.values.dtype).name


def stacked(weight: QuantWeight, layer: Int32[Array, ""] | int | None) -> tuple[QuantWeight, Int32[Array, " 1"]]:
    """What a kernel is given: a stack of layers, and which of them it multiplies. A single matrix is a stack of one."""
    if layer is None:
        weight, layer = jax.tree.map(lambda array: array[None], weight), 0
    return weight, jnp.asarray(layer, jnp.int32).reshape(1)


def stored_bytes(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of an array in a chip's memory; a 4-bit element takes half a byte there, whatever NumPy says."""
    dtype = jnp.dtype(array.dtype)
    return -(-array.size * BITS.get(dtype.name, 8 * dtype.itemsize) // 8)
