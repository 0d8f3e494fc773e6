"""Cost of tokens: arithmetic written out, and no guesses where nothing is published."""

import numpy as np
import pytest

from nanoserve.roofline.economy import economy
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec
from tests.roofline import factories as make


def test_eight_h100_at_a_thousand_tokens_a_second():
    """8 x 2.99 $/h, 3.6 million tokens an hour; 8 x 700 W."""
    cost = economy(make.cluster(ways=8), 1000.0)
    assert cost.usd_per_million_tokens == pytest.approx(8 * 2.99 / 3.6)
    assert cost.joules_per_token_at_most == pytest.approx(5.6)


def test_replicas_change_neither_figure():
    one, three = (ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 4, "data": n}) for n in (1, 3))
    assert economy(one, 500.0) == economy(three, 500.0)


def test_many_rates_at_once():
    cost = economy(make.cluster(), np.array([10.0, 20.0]))
    np.testing.assert_array_equal(cost.joules_per_token_at_most, [70.0, 35.0])


def test_what_is_not_published_is_not_guessed():
    cost = economy(make.cluster("tpu_v5e", 8), 1000.0)
    assert cost.usd_per_million_tokens == pytest.approx(8 * 1.20 / 3.6)
    assert cost.watts_at_most is None and cost.joules_per_token_at_most is None
