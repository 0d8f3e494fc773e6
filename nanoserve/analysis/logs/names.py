"""What services call the columns of their logs: from a file's names to canonical ones, with the unit a name carries.

`latency_ms`, `Latency (ms)` and `memory.used [MiB]` say their unit; `latency` does not, and this module never makes one
up: a name without a unit has the unit None, and `cells` asks. Next: `match`, which uses this on a whole file.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0}
BYTE_UNITS = {
    **{"bytes": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    **{"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
}
SHARE_UNITS = {"share": 1.0, "percent": 0.01}
DEGREES = {"c": 1.0}
UNITS: Mapping[str, Mapping[str, float]] = {
    "clock": TIME_UNITS,
    "duration": TIME_UNITS,
    "bytes": BYTE_UNITS,
    "share": SHARE_UNITS,
    "degrees": DEGREES,
}
"""Dimension -> unit -> how much of the canonical unit it is."""

_SPELLINGS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "micros", "microseconds"), "us"),
    **dict.fromkeys(("ns", "nsec", "nanos", "nanoseconds"), "ns"),
    **dict.fromkeys(("min", "minutes"), "min"),
    **dict.fromkeys(("b", "byte", "bytes"), "bytes"),
    **{unit: unit for unit in ("kb", "mb", "gb", "kib", "mib", "gib")},
    **dict.fromkeys(("share", "fraction", "ratio"), "share"),
    **dict.fromkeys(("pct", "percent", "percentage"), "percent"),
    **dict.fromkeys(("c", "celsius"), "c"),
}

DIMENSIONS = {
    "time_s": "clock",
    "latency_s": "duration",
    "ttft_s": "duration",
    "compute": "share",
    "bandwidth": "share",
    "memory_bytes": "bytes",
    "memory_total_bytes": "bytes",
    "temperature_c": "degrees",
}
"""Canonical column -> what kind of quantity it is; columns that are not here are counts, names or text."""

ASSUMED_UNITS = {"compute": "share", "bandwidth": "share", "temperature_c": "c"}
"""What a name without a unit means, where there is a custom; `cells` checks that values agree with it."""

_TIMES = "time timestamp ts datetime date arrival arrival_time arrived_at created_at created start_time started_at"
SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "api": {
        "time_s": f"{_TIMES} request_time received_at sent_at",
        "request_id": "request_id req_id requestid request id call_id trace_id uuid",
        "prompt_tokens": "prompt_tokens input_tokens context_tokens request_tokens num_prompt_tokens n_prompt_tokens "
        "prompt_length input_length prompt_len input_len tokens_in usage_prompt_tokens usage_input_tokens",
        "response_tokens": "response_tokens output_tokens generated_tokens completion_tokens num_output_tokens "
        "response_length output_length response_len output_len tokens_out usage_completion_tokens usage_output_tokens",
        "status": "status status_code http_status http_code code response_code result outcome",
        "latency_s": "latency e2e_latency request_latency total_latency e2e duration response_time elapsed total_time",
        "ttft_s": "ttft time_to_first_token first_token first_token_latency",
        "replica": "replica replica_id engine engine_id instance instance_id worker worker_id host hostname node pod",
        "allocated_blocks": "allocated_blocks allocated_pages kv_blocks blocks_allocated num_blocks",
        "used_tokens": "used_tokens kv_tokens",
    },
    "telemetry": {
        "time_s": f"{_TIMES} bucket bucket_start",
        "replica": "replica replica_id engine engine_id instance instance_id worker worker_id host hostname node pod "
        "gpu_id gpu_index",
        "compute": "compute compute_utilization compute_util gpu_utilization gpu_util utilization_gpu sm_utilization "
        "sm_util sm_active mfu",
        "bandwidth": "bandwidth bandwidth_utilization memory_bandwidth memory_bandwidth_utilization mem_bw_util "
        "utilization_memory dram_active mbu",
        "memory_bytes": "memory memory_used mem_used used_memory fb_used hbm_used gpu_memory gpu_memory_used",
        "memory_total_bytes": "memory_total mem_total total_memory fb_total hbm_total gpu_memory_total",
        "temperature_c": "temperature temp temperature_gpu gpu_temperature gpu_temp",
        "queue": "queue queue_length queue_depth queued waiting num_waiting num_requests_waiting pending",
        "running": "running running_requests num_running num_requests_running in_flight active",
        "blocks_used": "blocks_used used_blocks kv_blocks_used pages_used",
        "blocks_total": "blocks_total total_blocks kv_blocks_total pages_total",
        "largest_free_run_blocks": "largest_free_run_blocks largest_free_run",
        "used_tokens": "used_tokens kv_tokens",
    },
    "app": {
        "time_s": f"{_TIMES} logged_at event_time",
        "request_id": "request_id req_id requestid request id call_id trace_id uuid",
        "user_id": "user_id user uid customer_id customer client_id tenant account",
        "session_id": "session_id session conversation_id conversation chat_id thread_id",
        "turn": "turn turn_index turn_number turn_id message_index",
        "region": "region zone location country datacenter",
    },
    "errors": {
        "time_s": f"{_TIMES} logged_at event_time raised_at",
        "request_id": "request_id req_id requestid request id call_id trace_id uuid",
        "error_type": "error_type exception_type exception error_class error error_code error_name type kind level",
        "traceback": "traceback stack_trace stacktrace stack error_message exception_message message msg detail",
    },
}
"""Log -> canonical column -> the names it goes by, best first, separated by spaces; without units."""

_WORD_BREAK = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a name was taken for: a canonical column, the unit in the name, and how good a name it is (0 is best)."""

    column: str
    unit: str | None
    rank: int


def snake(name: str) -> str:
    """A name in lower case with underscores: `ContextTokens`, `memory.used [MiB]`, `Latency (ms)`."""
    whole = re.sub(r"[^A-Za-z0-9%]+", "_", name.strip()).replace("%", "_percent").strip("_")
    if "_" not in whole or not whole.islower():
        whole = _WORD_BREAK.sub("_", _keep_units_whole(whole))
    return re.sub(r"_+", "_", whole).lower()


def meanings(name: str, log: str) -> Iterator[Meaning]:
    """What a file's column may be in a log of this kind.

    Args:
      name: as the file has it. log: `api`, `telemetry`, `app` or `errors`.
    """
    text = snake(name)
    for column, synonyms in SYNONYMS[log].items():
        names = synonyms.split()
        if text == column:
            yield Meaning(column, _canonical_unit(column), 0)
        elif text in names:
            yield Meaning(column, None, 1 + names.index(text))
        elif (stem_unit := _split_unit(text, column)) and stem_unit[0] in names:
            yield Meaning(column, stem_unit[1], 1 + names.index(stem_unit[0]))


def _canonical_unit(column: str) -> str | None:
    """The unit that a canonical name promises: `latency_s` seconds, `compute` a share."""
    return {"clock": "s", "duration": "s", "share": "share", "bytes": "bytes", "degrees": "c"}.get(
        DIMENSIONS.get(column, "")
    )


def _split_unit(text: str, column: str) -> tuple[str, str] | None:
    """The stem and the unit of a name that ends in one that suits the column."""
    stem, _, suffix = text.rpartition("_")
    unit = _SPELLINGS.get(suffix)
    units = UNITS.get(DIMENSIONS.get(column, ""), {})
    return (stem, unit) if unit is not None and unit in units else None


def _keep_units_whole(name: str) -> str:
    """Lowers `MiB` and its like, whose capitals are no word breaks."""
    return re.sub(r"(?i)(?<![a-z])[kmg]i?b(?![a-z])", lambda unit: unit.group().lower(), name)
