"""Measures one shape: chooses an implementation, compares it and its peers with the truth, and times them in turns.

Next: `attention_calls` (ours), `attention_peers` (theirs), `attention_results` (what becomes of the records).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.attention_calls import KV_DTYPES, TOLERANCE, error_of, make_inputs, paged, truth
from experiments.bench.attention_peers import Peer, Setting, described, ready
from experiments.bench.attention_results import FAILED, MEASURED, OURS, SKIPPED, Record, achieved
from experiments.bench.attention_shapes import BenchShape, Useful, useful
from experiments.bench.attention_timing import Contender, Effort, Timed, take_turns
from kernels.pallas import compat
from kernels.pallas.paged_attention import api
from nanoserve.specs.errors import ConfigError


def choose(shape: BenchShape, setting: Setting) -> api.Choice:
    """The implementation that the engine would take for a shape.

    Raises:
      ConfigError: if the one that was asked for does not serve it.
    """
    pool = (sum(shape.pages), shape.page_tokens, shape.kv_heads, 2, shape.head_size)
    return api.choose(
        setting.implementation,
        compat.kernel_target(setting.device),
        jax.ShapeDtypeStruct((shape.tokens, shape.heads, shape.head_size), jnp.bfloat16),
        jax.ShapeDtypeStruct(pool, KV_DTYPES[shape.kv]),
        jax.ShapeDtypeStruct((len(shape.kv_lens), max(shape.pages)), jnp.int32),
        None if shape.kv == "bf16" else jax.ShapeDtypeStruct(pool[:4], jnp.float32),
    )


def measure(
    shape: BenchShape,
    setting: Setting,
    effort: Effort,
    ceilings: dict[str, Any] | None,
    *,
    peers: Mapping[str, Peer],
    oracle: bool,
) -> Record:
    """What there is to record of a shape.

    Args:
      shape, setting, effort: what to measure, on what, for how long.
      ceilings: of this run, if they were measured.
      peers: timed too, where they serve the shape. oracle: compare with plain loops rather than with `xla`.

    Raises:
      Exception: whatever stands in the way of measuring at all; what one contender raises is in the record.
    """
    try:
        choice = choose(shape, setting)
    except ConfigError as error:
        return {"status": SKIPPED, "implementation": setting.implementation, "reason": str(error)}
    needs = useful(shape)
    calls, sets = effort.calls(needs.bytes, needs.flops), effort.sets(needs.bytes)
    inputs = make_inputs(shape, sets, choice.name)
    beside, left_out = ready(inputs, dataclasses.replace(setting, implementation=choice.name), calls, peers)
    contenders = {OURS: paged(inputs, choice.name, calls)} | beside
    errors, wrong = checked(contenders, truth(inputs, oracle))
    timed = take_turns({name: contenders[name].timeable for name in errors}, effort)
    records = wrong | {name: _record(contenders[name], errors[name], timed[name], needs, ceilings) for name in errors}
    ours = records.pop(OURS)
    chosen = {"implementation": choice.name, "why": choice.why, "sets": sets}
    return chosen | ours | {"peers": left_out | records}


def checked(contenders: Mapping[str, Contender], expected: np.ndarray) -> tuple[dict[str, float], dict[str, Record]]:
    """The errors of those whose first result is right, and records of the others.

    Args:
      contenders: by name. expected: what the first result of each should be.
    """
    errors, wrong = {}, {}
    for name, contender in contenders.items():
        try:
            error = error_of(contender.first(), expected)
        except Exception as raised:  # a contender's failure is a result
            wrong[name] = {"status": FAILED, "reason": described(raised)}
            continue
        if error <= TOLERANCE:
            errors[name] = error
        else:
            wrong[name] = {"status": FAILED, "reason": f"error {error:.2g}, more than {TOLERANCE:.2g}", "error": error}
    return errors, wrong


def _record(
    contender: Contender, error: float, timed: Timed | Exception, needs: Useful, ceilings: dict[str, Any] | None
) -> Record:
    if isinstance(timed, Exception):
        return {"status": FAILED, "reason": described(timed)}
    return {
        "status": MEASURED,
        "how": contender.how,
        "calls": contender.timeable.calls,
        "error": error,
        "time": timed.record(),
        **achieved(needs, timed.median_s, ceilings),
    }
