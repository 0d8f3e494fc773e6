"""KV on the move: bytes and seconds written out, and errors that name the missing figure."""

import numpy as np
import pytest

from nanoserve.roofline.transfer import copy_seconds, kv_bytes, pool_transfer_seconds, swap_seconds
from nanoserve.specs.chips import Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from tests.roofline import factories as make

LLAMA = model("llama-3.1-70b")
TOKEN_BYTES = 2 * 80 * 8 * 128 * 2


def test_a_sequence_is_swapped_by_all_chips_at_once():
    """One KV head a chip, over PCIe 5.0 x16."""
    assert swap_seconds(LLAMA, make.cluster(ways=8), make.BF16, 4096) == pytest.approx(4096 * TOKEN_BYTES / 8 / 64e9)
    latent = model("deepseek-v3")  # a copy of the latents on every chip: nothing is gained
    one, eight = (swap_seconds(latent, make.cluster(ways=n), make.BF16, 4096) for n in (1, 8))
    assert one == eight == pytest.approx(4096 * 70272 / 64e9)


def test_a_copy_reads_and_writes_every_byte_once():
    rate = make.cluster(ways=8).chip.hbm_bytes_per_s
    seconds = copy_seconds(LLAMA, make.cluster(ways=8), make.BF16, np.array([4096, 8192]))
    assert seconds == pytest.approx(2 * np.array([4096, 8192]) * TOKEN_BYTES / 8 / rate)


def test_quantised_kv_moves_with_its_factors():
    assert kv_bytes(LLAMA, Precision(kv="int8"), 1) == TOKEN_BYTES // 2 + 2 * 80 * 8 * 4


def test_pools_exchange_over_as_many_networks_as_the_smaller_has():
    small, large = make.cluster(ways=2), make.cluster(ways=8)
    seconds = pool_transfer_seconds(LLAMA, small, large, make.BF16, 1000)
    assert seconds == pool_transfer_seconds(LLAMA, large, small, make.BF16, 1000)
    assert seconds == pytest.approx(1000 * TOKEN_BYTES / (2 * 50e9))
    mixed = pool_transfer_seconds(LLAMA, make.cluster("a100_sxm_80gb", 2), large, make.BF16, np.array([1000, 2000]))
    assert mixed == pytest.approx([2 * seconds, 4 * seconds])


def test_a_figure_that_is_not_published_is_asked_for():
    with pytest.raises(ConfigError, match=r"tpu_v5e.*host_bytes_per_s.*chip_registry"):
        swap_seconds(LLAMA, make.cluster("tpu_v5e", 8), make.BF16, 1)
    with pytest.raises(ConfigError, match=r"l4.*network_bytes_per_s"):
        pool_transfer_seconds(LLAMA, make.cluster("l4"), make.cluster(), make.BF16, 1)
