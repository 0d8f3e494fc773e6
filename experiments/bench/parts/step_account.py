"""What a step computes and moves, what share of the chip that is in the time it took, and what was predicted.

Bytes are useful ones, as the cost model counts them: each matrix read once, the embeddings of the step's tokens, each
attended KV position read once with its factors where KV has 8 bits, each new one written once. Activations are kept
apart: how many of them reach memory is the compiler's choice.

Next: `nanoserve.roofline.ops`, `nanoserve.roofline.timing`.
"""

from experiments.bench.parts import Context
from experiments.bench.parts.ceilings import BF16, COPY, READ
from experiments.bench.parts.step_cases import StepCase
from experiments.bench.results_file import Record
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.storage import kv_scale_bytes_per_chip
from nanoserve.roofline.timing import step_time
from nanoserve.specs.chips import ChipSpec, ClusterSpec


def account(case: StepCase, context: Context, step_s: float) -> Record:
    """FLOPs, bytes, shares of the datasheet and of the measured ceilings, and predictions.

    Args:
      case, context: the step, and where. step_s: what it took.
    """
    work = needs(case, context.chip)
    moved = work["bytes"]["weights"] + work["bytes"]["kv"]
    return {
        **work,
        "mfu": work["flops"] / step_s / context.chip.peak("bf16"),
        "mbu": moved / step_s / context.chip.hbm_bytes_per_s,
        "matmul_fraction": _share(work["flops"] / step_s, context.ceiling(BF16)),
        "copy_fraction": _share(moved / step_s, context.ceiling(COPY)),
        "read_fraction": _share(moved / step_s, context.ceiling(READ)),
        "predicted": predictions(case, context.chip),
    }


def needs(case: StepCase, chip: ChipSpec) -> Record:
    """FLOPs, and bytes by what they are of."""
    sums = totals(step_ops(case.spec, _alone(chip), case.precision, case.counts))
    attended = case.counts.decode_kv_tokens + case.counts.prefill_kv_tokens
    factors = attended * kv_scale_bytes_per_chip(case.spec, case.precision, 1)
    moved = {
        "weights": int(sums.weight_bytes),
        "kv": int(sums.kv_read_bytes + sums.kv_write_bytes) + factors,
        "other": int(sums.activation_bytes),
    }
    return {
        "flops": int(sums.matmul_flops + sums.attention_flops),
        "bytes": moved | {"total": sum(moved.values())},
    }


def predictions(case: StepCase, chip: ChipSpec) -> Record:
    """Seconds of the step by the datasheet, and by the constants that there are of the chip."""
    ops = step_ops(case.spec, _alone(chip), case.precision, case.counts)
    limit, fitted = (constants_for(chip, case.precision, mode) for mode in ("sol", "calibrated"))
    return {
        "sol_s": step_time(ops, _alone(chip), limit),
        "calibrated_s": step_time(ops, _alone(chip), fitted),
        "calibrated_by": f"{fitted.name} ({fitted.file})",
        "chip": chip.name,
    }


def _alone(chip: ChipSpec) -> ClusterSpec:
    return ClusterSpec(chip=chip, mesh={"tensor": 1})


def _share(rate_per_s: float, ceiling_per_s: float | None) -> float | None:
    return rate_per_s / ceiling_per_s if ceiling_per_s else None
