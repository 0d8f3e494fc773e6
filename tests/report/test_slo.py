import pytest

from nanoserve.report.slo import NAMED_SLOS, Slo, resolve_slo
from nanoserve.specs.errors import ConfigError


def test_named_limits_are_those_of_mlperf():
    limits_ms = {name: (slo.ttft_s * 1e3, slo.tpot_s * 1e3) for name, slo in NAMED_SLOS.items()}
    assert limits_ms == {
        "llama2-70b": (2000, 200),
        "llama2-70b-interactive": (450, 40),
        "llama3.1-405b": (6000, 175),
        "llama3.1-8b": (2000, 100),
        "llama3.1-8b-interactive": (500, 30),
    }


def test_a_limit_replaces_the_named_one_and_says_so():
    assert resolve_slo("llama2-70b", tpot_s=0.05) == Slo(name="llama2-70b (changed)", ttft_s=2.0, tpot_s=0.05)
    assert resolve_slo("llama2-70b", ttft_s=2.0) is not None
    assert resolve_slo(None, 1.0, 0.1) == Slo(name="custom", ttft_s=1.0, tpot_s=0.1)
    assert resolve_slo(None) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama2-70", None, None), "Did you mean 'llama2-70b'"),
        ((None, 1.0, None), "Slo.tpot_s is missing"),
        ((None, None, 1.0), "Slo.ttft_s is missing"),
        ((None, 0.0, 1.0), "Slo.ttft_s = 0.0"),
        ((None, 1.0, float("nan")), "Slo.tpot_s = nan"),
    ],
)
def test_limits_that_cannot_be_used_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve_slo(*arguments)
