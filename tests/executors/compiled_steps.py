"""Compiles whole steps of real models for chips that are not there, and prints what was found, a line of JSON a case.

Run in a process of its own: the vendors' compilers read their environment when they are first loaded.
`python -m tests.executors.compiled_steps tpu`
"""

import dataclasses
import json
import os
import sys
from typing import Any

from nanoserve.specs.model_registry import model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A step of a model on `chips` tensor-parallel chips, or so many for each place of the other axes."""

    model: str
    chip: str
    chips: int
    expert: int = 1
    pipeline: int = 1
    layers: int | None = None
    program: str = "decode_step"
    batch: int = 32
    context_tokens: int = 2048
    page_tokens: int = 16
    kv: str = "bf16"
    weights: str = "bf16"

    def __str__(self) -> str:
        stored = self.kv if self.weights == "bf16" else f"{self.weights}-{self.kv}"
        others = {"expert": self.expert, "pipeline": self.pipeline}
        groups = "".join(f"-{axis}{size}" for axis, size in others.items() if size > 1)
        return f"{self.model}{groups}-{self.chips}x{self.chip}-{self.program}-{stored}"


EIGHT_B: dict[str, Any] = {"model": "llama-3.1-8b", "chips": 1}
SEVENTY_B: dict[str, Any] = {"model": "llama-3.1-70b", "chips": 8}
ONE_CHIP: dict[str, Any] = {"model": "llama-3.1-70b", "chips": 1, "weights": "int4"}
EXPERTS: dict[str, Any] = {"model": "mixtral-8x7b", "chips": 1, "expert": 8, "layers": 2}
STAGES: dict[str, Any] = {"model": "llama-3.1-70b", "chips": 4, "pipeline": 2, "layers": 16}
CASES: dict[str, list[Case]] = {
    "tpu": [
        Case(**EIGHT_B, chip="tpu_v5e", batch=8, context_tokens=512),
        Case(**EIGHT_B, chip="tpu_v5p"),
        Case(**EIGHT_B, chip="tpu_v6e", kv="int8", page_tokens=128),
        Case(**EIGHT_B, chip="tpu_v6e", weights="int8", page_tokens=128),
        Case(**SEVENTY_B, chip="tpu_v5e"),
        Case(**SEVENTY_B, chip="tpu_v5p"),
        Case(**SEVENTY_B, chip="tpu_v6e", page_tokens=128),
        Case(**EIGHT_B, chip="tpu_v5p", program="verify_step", layers=2),
        Case(**EXPERTS, chip="tpu_v5p"),
        Case(**STAGES, chip="tpu_v6e", page_tokens=128),
    ],
    "gpu": [
        Case(**EIGHT_B, chip="h100_sxm", page_tokens=64),
        Case(**SEVENTY_B, chip="h100_sxm"),
        Case(**SEVENTY_B, chip="h100_sxm", program="prefill_step"),
        Case(**EIGHT_B, chip="h100_sxm", page_tokens=64, program="verify_step", layers=2),
        Case(**EIGHT_B, chip="h100_sxm", page_tokens=64, program="decode_loop", batch=1),
        Case(**ONE_CHIP, chip="h100_sxm", page_tokens=64, batch=1),
        Case(**EXPERTS, chip="h100_sxm", page_tokens=64),
        Case(**STAGES, chip="h100_sxm", page_tokens=64),
    ],
}
TOO_LARGE = str(CASES["tpu"][4])  # 16.4 GiB of weights a chip, of 16


def main(platform: str) -> None:
    """Compiles every case of a platform."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for case in CASES[platform]:
        print(json.dumps({"case": str(case), **compiled(case)}), flush=True)


def expected_flops(case: Case, model_flops: float) -> float:
    """The cost model's FLOPs, and those of the turns in which a pipeline's stage idles; the head has no such turns.

    On a GPU the head's lone row is one of a tile.
    """
    from kernels.pallas.einsum import CUDA_TILE_ROWS

    spec = model(case.model)
    head = 2 * spec.hidden * spec.vocab * case.batch / (case.chips * case.expert * case.pipeline)
    idle = (case.pipeline - 1) / case.pipeline
    others = (CUDA_TILE_ROWS - 1) * head if case.batch == 1 and case.chip.startswith("h100") else 0
    return model_flops + idle * (model_flops - head) + others


def compiled(case: Case) -> dict[str, Any]:
    """What the report says of a case."""
    from nanoserve.executors.aot import Compiler, Workload
    from nanoserve.executors.aot_expected import Setting
    from nanoserve.executors.aot_kernels import launched
    from nanoserve.executors.aot_report import describe
    from nanoserve.specs.chip_registry import chip
    from nanoserve.specs.chips import ClusterSpec, Precision

    work = Workload(
        batch=case.batch,
        context_tokens=case.context_tokens,
        chunk_tokens=512,
        page_tokens=case.page_tokens,
        slots=case.batch,
    )
    spec, mesh = model(case.model), {"tensor": case.chips, "expert": case.expert, "pipeline": case.pipeline}
    facts: dict[str, Any] = {
        "model": dataclasses.replace(spec, layers=case.layers or spec.layers),
        "cluster": ClusterSpec(chip=chip(case.chip), mesh=mesh, expert_divides="heads"),
        "precision": Precision(weights=case.weights, kv=case.kv),
        "work": work,
    }
    compiler = Compiler(facts["model"], facts["cluster"], facts["precision"], work, "auto")
    setting = Setting(**facts, attention=compiler.attention.name)
    program = getattr(compiler, case.program)()
    report = describe(program, setting)
    found = {"attention": setting.attention, **dataclasses.asdict(report)}
    if facts["cluster"].chip.platform != "gpu" or report.refused:
        return found
    kernels = launched(program, setting)
    return found | {"launched": dataclasses.asdict(kernels), "of_a_layer": kernels.of_a_layer}


if __name__ == "__main__":
    main(sys.argv[1])
