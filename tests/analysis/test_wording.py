"""Numbers read as people write them."""

import pytest

from nanoserve.analysis.wording import counted, figure


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_one_thing_is_no_things(number: int, said: str):
    assert counted(number, "row") == said


@pytest.mark.parametrize(("value", "said"), [(126195.0, "126,195"), (20.8, "20.8"), (0.07169, "0.0717"), (0.0, "0")])
def test_a_figure_has_no_exponent(value: float, said: str):
    assert figure(value) == said
