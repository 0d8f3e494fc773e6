"""Results as `experiments/bench/h100.py` writes them, of its own cases, with the times that known constants give."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.attention_shapes import counts
from experiments.bench.parts import attention, ceilings, matmul, step
from experiments.bench.parts.attention import AttentionCase
from experiments.bench.parts.ceilings import Ceiling
from experiments.bench.parts.matmul import MatmulCase
from experiments.bench.parts.step_cases import StepCase
from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.efficiency import Kernel
from nanoserve.roofline.op import Op
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import op_times, step_time
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model

H100 = chip("h100_sxm")
DEVICE = "NVIDIA H100 80GB HBM3"
CLUSTER = ClusterSpec(chip=H100, mesh={"tensor": 1})
BF16 = Precision()
INT4 = Precision(weights="int4", kv="fp8")

LOOP_STEPS = 33

KNOWN = dataclasses.replace(
    constants_for(H100, BF16, "calibrated", "vllm"),
    matmul={"bf16": Kernel(2e-6, 0.88, 0.75), "bf16_int4": Kernel(3e-6, 0.72, 0.6)},
    decode_attention=Kernel(6e-6, 0.86, item_s=3e-8),
    prefill_attention=Kernel(9e-6, 0.5, 0.55, overlap=0.0),
    elementwise=Kernel(1.5e-6, 0.6),
    host_gap_s=2e-5,
    host_row_s=4e-7,
    host_call_s=3e-4,
)
"""What made the times, whatever the dtype of KV."""


def write(path: Path, noise: float = 0.0, **run: Any) -> Path:
    """Writes results whose times are those of `KNOWN`, each times a factor within `noise` of 1."""
    path.write_text(json.dumps(results(noise, **run)))
    return path


def results(noise: float = 0.0, **run: Any) -> dict[str, Any]:
    """The content of a file; `run` replaces what its run says of itself."""
    draw = np.random.default_rng(0).uniform
    parts = found()
    for record in (record for cases in parts.values() for record in cases.values()):
        for timed in (record, record.get("peers", {}).get("bf16")):
            if timed:
                timed["time"]["median_s"] *= 1 + noise * draw(-1, 1)
    described = {"command": "", "device": DEVICE, "absolute_times_count": True, "toy": False}
    return {"counts": {}, "runs": [described | run], "parts": parts}


def found(extras: bool = True) -> dict[str, dict[str, dict[str, Any]]]:
    """Records by part and case, without noise: of every case of the bench, or of those that it measures unasked."""
    parts = ((ceilings, _ceiling), (attention, _attention), (matmul, _product), (step, _step))
    return {
        part.NAME: {
            case.name: {"run": 0, **case.sizes(), **timed(case)}
            for case in part.cases(toy=False)
            if extras or not case.extra
        }
        for part, timed in parts
    }


def _ceiling(case: Ceiling) -> dict[str, Any]:
    return _timed(1.0) | {"datasheet_fraction": 0.9}


def _attention(case: AttentionCase) -> dict[str, Any]:
    """One layer's attention, by the cost model but for writing KV, which is another kernel."""
    shape = case.shape
    spec = dataclasses.replace(model(shape.model), layers=1)
    cluster = ClusterSpec(chip=H100, mesh={"tensor": shape.ways})
    ops = step_ops(spec, cluster, Precision(kv=shape.kv), counts(shape))
    (op,) = (op for op in ops if op.name == f"attention_{shape.kind}")
    return _timed(op_times(dataclasses.replace(op, kv_write_bytes=0), cluster, KNOWN).total)


def _product(case: MatmulCase) -> dict[str, Any]:
    """A matrix of a layer, a launch of it; beside it the same with weights in bf16, and a peer that failed."""
    seconds = {scheme: op_times(_matrix(case, scheme), CLUSTER, KNOWN).total for scheme in (case.scheme, "bf16")}
    peers = {"bf16": _timed(seconds["bf16"]), "xla": {"status": "failed", "reason": "why"}}
    return _timed(seconds[case.scheme]) | {"peers": peers}


def _matrix(case: MatmulCase, stored: str) -> Op:
    spec = dataclasses.replace(model(case.model), layers=1)
    ops = step_ops(spec, CLUSTER, Precision(weights=stored), StepCounts(decode_seqs=case.rows))
    (op,) = (op for op in ops if op.name == case.matrix)
    return op


def _step(case: StepCase) -> dict[str, Any]:
    """A decode step is timed in a loop, and as a call of its own."""
    device_s = step_time([op for op in _ops(case) if op.kind != "host"], CLUSTER, KNOWN)
    in_step_s = KNOWN.host_gap_s + KNOWN.host_row_s * case.counts.sampled
    steps = LOOP_STEPS if case.kind == "decode" else 1
    gap_s = in_step_s + KNOWN.host_call_s / steps
    found = {"counts": dataclasses.asdict(case.counts), "device_step_s": device_s, "host_gap_s": gap_s}
    single = {"median_s": device_s + in_step_s + KNOWN.host_call_s}
    looped = {"loop_steps": steps, "single": single} if steps > 1 else {}
    return _timed(device_s + gap_s) | found | looped


def _ops(case: StepCase) -> tuple[Op, ...]:
    return step_ops(case.spec, CLUSTER, case.precision, case.counts)


def _timed(seconds: float) -> dict[str, Any]:
    return {"status": "measured", "time": {"median_s": float(seconds)}}


def expected(calibration: Calibration) -> Mapping[str, Kernel]:
    """The constants of operations, by what they are called here."""
    return {
        **{f"matmul {variant}": kernel for variant, kernel in calibration.matmul.items()},
        "decode": calibration.decode_attention,
        "prefill": calibration.prefill_attention,
        "elementwise": calibration.elementwise,
    }
