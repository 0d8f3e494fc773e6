"""A per-request log of a vLLM server, as LLMServingSim records it, with the scenario that replays it.

A folder holds `meta.json` (the engine's arguments), `config.json` (the hardware) and `requests.jsonl` (lengths, and the
server's own clock when a request was queued and gave its first and last token). Times are the engine's: the HTTP server
is not in them. Next: `comparison`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanoserve.analysis.published.scenario import Outcome, Scenario
from nanoserve.analysis.published.stacks import stack_of
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import TraceError, nearest
from nanoserve.specs.model_registry import model
from nanoserve.trace.types import Trace

_CHIPS = {"RTXPRO6000": "rtx_pro_6000", "H100": "h100_sxm", "A100": "a100_sxm_80gb", "H200": "h200_sxm"}
_DTYPES = {"bfloat16": "bf16", "float16": "bf16"}  # of one size and speed
_TIMES = ("queued_ts", "first_token_ts", "last_token_ts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredLog:
    """A log: what to replay, on whose constants, and what was measured, in the scenario's order."""

    name: str
    stack: str
    engine: str
    scenario: Scenario
    measured: Outcome


def read_vllm_log(folder: str | Path) -> MeasuredLog:
    """Reads a folder.

    Raises:
      TraceError: a file or a column is missing. ConfigError: hardware or a model that is not known.
    """
    folder = Path(folder)
    meta, hardware = _json(folder / "meta.json"), _json(folder / "config.json")
    instance = _first(folder / "config.json", hardware)
    asked = meta["engine_kwargs"]
    columns = _columns(folder / "requests.jsonl")
    engine = f"vLLM {meta['vllm_version']}"
    stack = stack_of(engine)
    if stack is None or asked["dtype"] not in _DTYPES:
        raise TraceError(f"{folder}/meta.json: dtype '{asked['dtype']}' or engine '{engine}' is not known here")
    the_chip = chip(_chip_name(folder, instance["hardware"]))
    return MeasuredLog(
        name=folder.name,
        stack=stack.name,
        engine=engine,
        scenario=Scenario(
            model=model(meta["model"].split("/")[-1].lower()),
            cluster=ClusterSpec(chip=the_chip, mesh={"tensor": asked["tensor_parallel_size"]}),
            precision=Precision(),
            engine=stack.engine(
                the_chip, max_seqs=asked["max_num_seqs"], max_step_tokens=asked["max_num_batched_tokens"]
            ),
            trace=_trace(folder, columns),
        ),
        measured=_outcome(columns),
    )


def _chip_name(folder: Path, written: str) -> str:
    if written not in _CHIPS:
        raise TraceError(f"{folder}/config.json: hardware '{written}' is not known here.{nearest(written, _CHIPS)}")
    return _CHIPS[written]


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of the log, by time of queueing, the first at 0."""
    rows = [json.loads(line) for line in _text(path).splitlines()]
    names = ("input_toks", "output_toks", *_TIMES)
    missing = [name for name in names if not all(name in row for row in rows)]
    if missing or not rows:
        raise TraceError(f"{path}: no {', '.join(missing) or 'rows'}. Is it LLMServingSim's log of a vLLM server?")
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    order = np.argsort(columns["queued_ts"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _trace(folder: Path, columns: dict[str, np.ndarray]) -> Trace:
    return Trace(
        name=folder.name,
        source=f"{folder}/requests.jsonl",
        arrival_s=columns["queued_ts"] - columns["queued_ts"][0],
        prompt_tokens=columns["input_toks"],
        output_tokens=columns["output_toks"],
    ).validated()


def _outcome(columns: dict[str, np.ndarray]) -> Outcome:
    queued, first, last = (columns[name] for name in _TIMES)
    tokens = columns["output_toks"]
    return Outcome(
        ttft_s=first - queued,
        tpot_s=(last - first) / np.where(tokens > 1, tokens - 1, np.nan),
        output_tokens=tokens,
        duration_s=float(last.max() - queued.min()),
    )


def _first(path: Path, hardware: dict[str, Any]) -> dict[str, Any]:
    try:
        instances: Sequence[dict[str, Any]] = hardware["nodes"][0]["instances"]
        return instances[0]
    except (KeyError, IndexError, TypeError) as error:
        raise TraceError(f"{path}: names no instance under nodes. Is it LLMServingSim's configuration?") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise TraceError(f"{path}: is not JSON ({error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}. A log has meta.json, config.json and requests.jsonl") from error
