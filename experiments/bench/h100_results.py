"""What the H100 benchmark writes down: runs, and the cases of each part.

    {"counts": what figures mean, "runs": [...], "parts": {part: {case: {"run": i, "status": ..., ...}}}}

Cases that failed are taken again by a run that goes on with the file; measured and skipped ones are not.

Next: `h100_table` (for people), `h100_page` (the page made from it).
"""

import dataclasses
from pathlib import Path

from experiments.bench.results_file import FAILED, Record, ResultsFile

COUNTS = {
    "time": "seconds of one call, or of one step until its token is booked on the host; the median of batches, each "
    "waited for at its end",
    "rate_per_s": "of a ceiling: bytes or FLOPs in a second, as its `counts` says",
    "copy_fraction, read_fraction, matmul_fraction": "of the ceiling of that name in this file (matmul: bf16)",
    "flops": "2 per multiply-add of matrix products, and of attention under the causal mask, by nanoserve.roofline.ops",
    "bytes": "useful bytes by nanoserve.roofline.ops: every matrix read once a step, each attended KV position read "
    "once and each new one written once, activations at the inputs and outputs of products and attention (other)",
    "mbu": "(weights + kv bytes) / time / the datasheet's bandwidth of the chip",
    "mfu": "flops / time / the datasheet's dense bf16 peak of the chip",
    "host_gap_s": "of a decode step: what a step in a loop takes longer where the host reads each loop's tokens before "
    "it starts the next, than the device needs; the device's need is the slope between loops of two lengths",
}


@dataclasses.dataclass
class Results(ResultsFile):
    """The content of a file.

    Attributes:
      parts: the records of each part, by case.
    """

    parts: dict[str, dict[str, Record]] = dataclasses.field(default_factory=dict)

    same = ("device", "toy")

    def content(self) -> Record:
        """What the file holds."""
        return {"counts": COUNTS, "runs": self.runs, "parts": self.parts}

    def add(self, part: str, case: str, record: Record) -> None:
        """Adds a case, or replaces it."""
        self.parts.setdefault(part, {})[case] = {"run": self.run, **record}
        self.write()

    def has(self, part: str, case: str) -> bool:
        """A case is there and did not fail."""
        record = self.parts.get(part, {}).get(case)
        return record is not None and record["status"] != FAILED

    def failed(self) -> bool:
        """Whether any case did."""
        return any(record["status"] == FAILED for cases in self.parts.values() for record in cases.values())


def resumed(path: Path) -> Results:
    """What a file holds already; nothing if there is none.

    Raises:
      ConfigError: for a file that the command did not write.
    """
    return Results.resumed(path, lambda content: Results(path, content["runs"], content["parts"]))
