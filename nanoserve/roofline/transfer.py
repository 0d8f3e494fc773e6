"""KV on the move: to host memory and back over PCIe, to other pages, and from one pool of chips to another.

Bytes are exact, factors of quantised KV included; seconds are the datasheet's, with nothing in the way: a lower limit.
Every chip of a pool moves its own part at once, so more chips are faster up to the smaller pool's number. Numbers or
arrays of tokens.

Next: `memory` (what has to move when it does not fit), `links` (rates).
"""

from nanoserve.roofline.counts import Count
from nanoserve.roofline.numeric import Number
from nanoserve.roofline.split import split_of
from nanoserve.roofline.storage import kv_bytes_per_chip, kv_scale_bytes_per_chip
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec


def kv_bytes(model: ModelSpec, precision: Precision, tokens: Count) -> Count:
    """Returns the bytes of the KV of `tokens` tokens, all layers and heads once."""
    return tokens * (kv_bytes_per_chip(model, precision, 1) + kv_scale_bytes_per_chip(model, precision, 1))


def swap_seconds(model: ModelSpec, cluster: ClusterSpec, precision: Precision, tokens: Count) -> Number:
    """Returns the seconds to bring the KV of `tokens` tokens of one sequence to host memory, or back.

    Each chip copies what it holds, copies of heads included, over its own PCIe link.

    Raises:
      ConfigError: the chip's host link is not published, or an unknown dtype or mesh axis.
    """
    return tokens * _bytes_held(model, cluster, precision) / _published(cluster.chip, "host_bytes_per_s")


def copy_seconds(model: ModelSpec, cluster: ClusterSpec, precision: Precision, tokens: Count) -> Number:
    """Returns the seconds to copy the KV of `tokens` tokens to other pages of the same device.

    Each chip reads what it holds from HBM and writes it back there, at the bandwidth of the datasheet.

    Raises:
      ConfigError: an unknown dtype or mesh axis.
    """
    return 2 * tokens * _bytes_held(model, cluster, precision) / cluster.chip.hbm_bytes_per_s


def pool_transfer_seconds(
    model: ModelSpec, source: ClusterSpec, target: ClusterSpec, precision: Precision, tokens: Count
) -> Number:
    """Returns the seconds to send the KV of `tokens` tokens from one pool to another over the network.

    As many chips send as receive, each its part and no head twice; the slower network counts.

    Args:
      model, precision: whose KV, and how it is stored. source, target: one replica of each pool.
      tokens: that move.

    Raises:
      ConfigError: a chip's network is not published, or an unknown dtype or mesh axis.
    """
    pairs = min(split_of(pool).head_ways * split_of(pool).pipeline for pool in (source, target))
    rate = min(_published(pool.chip, "network_bytes_per_s") for pool in (source, target))
    return kv_bytes(model, precision, tokens) / (pairs * rate)


def _bytes_held(model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> Number:
    """What a chip holds of the KV of one token, copies of heads included."""
    split = split_of(cluster)
    parts = split.head_ways, split.pipeline
    return kv_bytes_per_chip(model, precision, *parts) + kv_scale_bytes_per_chip(model, precision, *parts)


def _published(chip: ChipSpec, figure: str) -> float:
    value = getattr(chip, figure)
    if value is None:
        raise ConfigError(
            f"chip '{chip.name}' has no {figure} in nanoserve/specs/chip_registry.py: it is not published. Add it "
            "there with its source"
        )
    return value
