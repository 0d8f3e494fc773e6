"""A small part of the validation, with bounds: the simulator stays as right as it was."""

import pathlib

import pytest

from nanoserve.analysis.published.comparison import Replayer, compare_log, compare_row
from nanoserve.analysis.published.results import read_published
from nanoserve.analysis.published.rows import Case, case_of
from nanoserve.analysis.published.targets import judge
from nanoserve.analysis.published.vllm_log import read_vllm_log

SHARED = pathlib.Path(__file__).parents[4] / "shared"
TABLE, LOG = SHARED / "facts" / "published_throughput.csv", SHARED / "profiles" / "RTXPRO6000_Llama-3.1-8B"
needs_data = pytest.mark.skipif(
    not (TABLE.exists() and LOG.exists()), reason="published results are not at hand (looked in ../shared)"
)


@needs_data
def test_llama_70b_on_h100_under_vllm_is_within_its_targets():
    replayer = Replayer()
    cases = [case_of(row) for row in read_published(TABLE) if row.engine == "vllm" and "H100" in row.hardware]
    compared = [compare_row(case, replayer.predict(case)) for case in cases if isinstance(case, Case)]
    verdicts = judge(compared)
    assert (len(compared), len(verdicts)) == (24, 2)
    assert [verdict for verdict in verdicts if not verdict.reached] == []


@needs_data
def test_a_vllm_log_is_within_its_targets_also_on_requests_that_nothing_was_fitted_on():
    verdicts = judge(compare_log(read_vllm_log(LOG)))
    assert len(verdicts) == 8
    assert [verdict for verdict in verdicts if not verdict.reached] == []
