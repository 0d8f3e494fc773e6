"""The files of constants: one for each chip and software stack, as JSON beside this module.

A file holds, for each kind of operation and variant (operand dtype, KV dtype, ways), its constants (seconds, and shares
of the datasheet's figures), the `source` they were read from, and, where `experiments/calibrate.py` fitted them, the
`fit`: rows it was fitted on, rows held out, and errors by bucket of shapes. `validation.json` says by chip, stack and
mode how far whole steps were off; `experiments/validate.py` writes it. Where whole steps of a stack were measured
beside its operations, its file says that itself, until results of it are published and replayed.

Invariant: what is read here is checked where it is used, so a file that lacks a constant is an error that names it.
Next: `calibration`, which makes a `Calibration` of a file.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoserve.roofline.efficiency import Collective, Errors, Kernel, Mode, Validation
from nanoserve.specs.errors import ConfigError, nearest

FOLDER = Path(__file__).with_name("constants")
VALIDATION = FOLDER / "validation.json"
OWN_STACK = "nanoserve"
VALIDATED_METRICS = ("tpot", "ttft", "throughput")

_KERNEL_FIELDS = {field.name for field in dataclasses.fields(Kernel)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantsFile:
    """One file: whose constants, what made it, and the constants by kind of operation and variant.

    Attributes:
      chip: registry name, or a platform (`tpu`) for generic ones. stack: whose kernels. label: for people.
      command: writes the file again; empty where it is written by hand.
      base: `CHIP.STACK` of the file whose constants stand where this one has none; empty for none.
      constants: kind (`matmul`, `attention_decode`, ...) -> variant (`bf16`, `8`, ...) -> constant -> value.
      validation: how far off steps are that no constant was fitted to: `rows`, `of` (what they are), `held_out` (their
        names), `step` (errors); empty where none were measured.
    """

    chip: str
    stack: str
    label: str
    command: str
    base: str = ""
    constants: Mapping[str, Mapping[str, Mapping[str, Any]]]
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name."""
        return file_name(self.chip, self.stack)

    def entry(self, kind: str, variant: str) -> Mapping[str, Any]:
        """The constants of one kind and variant.

        Raises:
          ConfigError: the file does not have them.
        """
        try:
            return self.constants[kind][variant]
        except KeyError:
            raise ConfigError(
                f"{self.name}: has no constants of '{kind}' for '{variant}'. Add them to {FOLDER.name}/{self.name}, or "
                "choose another Pricing.stack"
            ) from None

    def variants(self, kind: str) -> tuple[str, ...]:
        """What there are constants for, of a kind of operation."""
        return tuple(self.constants.get(kind, ()))

    def kernel(self, kind: str, variant: str) -> Kernel:
        """An entry as a `Kernel`."""
        return Kernel(**{name: value for name, value in self.entry(kind, variant).items() if name in _KERNEL_FIELDS})

    def collectives(self, link_bytes_per_s: float) -> dict[int, Collective]:
        """The all-reduce of each number of chips, with links of `link_bytes_per_s`."""
        own, other = self.variants("all_reduce"), self.variants("all_reduce_nccl")
        found = {ways: self._algorithms("all_reduce_nccl", ways, link_bytes_per_s) for ways in other}
        for ways in own:
            found[ways] = self._algorithms("all_reduce", ways, link_bytes_per_s, beyond=found.get(ways))
        return {int(ways): found[ways] for ways in sorted(found, key=int)}

    def _algorithms(self, kind: str, ways: str, link: float, beyond: Collective | None = None) -> Collective:
        """One library's all-reduce; beyond its longest message, another's."""
        entry, ring = self.entry(kind, ways), 2 * (int(ways) - 1) / int(ways)
        longest_bytes = ring * entry.get("longest_message_bytes", math.inf)
        bulk = None
        if "bulk_link_share" in entry:
            bulk = Collective(entry["bulk_overhead_s"], entry["bulk_link_share"] * link)
        return Collective(entry["overhead_s"], entry["link_share"] * link, bulk, longest_bytes, beyond)

    def own_validation(self) -> Validation:
        """What the file knows of its error on whole steps."""
        found = self.validation
        return Validation(
            rows=found["rows"],
            of=found["of"],
            sources=tuple(found["held_out"]),
            errors={"step": Errors(**found["step"])},
            command=self.command,
        )

    def source(self, *kinds: str) -> str:
        """Where the constants of kinds were read: each thing said once."""
        said = dict.fromkeys(entry["source"] for kind in kinds for entry in self.constants.get(kind, {}).values())
        return "; ".join(said)


def file_name(chip: str, stack: str) -> str:
    """Returns the name of the file of a chip and stack."""
    return f"{chip}.{stack}.json"


def stacks(chip: str) -> tuple[str, ...]:
    """Returns the stacks whose constants for a chip (or platform) are in a file."""
    return tuple(sorted(path.name.split(".")[1] for path in FOLDER.glob(f"{chip}.*.json")))


@functools.cache
def load(chip: str, stack: str) -> ConstantsFile:
    """Returns the file of a chip (or platform) and stack, with what it takes from its base.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    return with_base(read(chip, stack))


def with_base(own: ConstantsFile) -> ConstantsFile:
    """Returns a file with what it takes from its base; raises as `load`."""
    if not own.base:
        return own
    base = load(*own.base.split(".", maxsplit=1))
    note = (
        f"as in {base.name}" if base.chip == own.chip else f"carried over from {base.name} as shares of the datasheet"
    )
    constants = {kind: _noted(entries, note) for kind, entries in base.constants.items()}
    for kind, entries in own.constants.items():
        constants.setdefault(kind, {}).update({variant: dict(entry) for variant, entry in entries.items()})
    return dataclasses.replace(own, constants=constants)


def read(chip: str, stack: str) -> ConstantsFile:
    """Returns a file as it is written; raises as `load`."""
    path = FOLDER / file_name(chip, stack)
    if not path.is_file():
        raise ConfigError(f"no constants of stack '{stack}' for {chip}.{nearest(stack, stacks(chip))}")
    try:
        return ConstantsFile(**_read(path))
    except TypeError as error:
        raise ConfigError(f"{path}: is not a file of constants ({error}). Restore it, or write it again") from error


def _noted(entries: Mapping[str, Mapping[str, Any]], note: str) -> dict[str, dict[str, Any]]:
    return {variant: {**entry, "source": f"{entry['source']}; {note}"} for variant, entry in entries.items()}


def save(path: Path, file: ConstantsFile) -> None:
    """Writes a file, an entry a line, so that a difference between two versions can be read.

    Raises:
      ConfigError: it cannot be written.
    """
    head = {name: value for name, value in dataclasses.asdict(file).items() if name != "constants"}
    if not file.validation:
        del head["validation"]
    kinds = (
        f" {json.dumps(kind)}: {{\n"
        + ",\n".join(f"   {json.dumps(v)}: {json.dumps(e)}" for v, e in entries.items())
        + "}"
        for kind, entries in file.constants.items()
    )
    text = json.dumps(head, indent=1)[:-2] + ',\n "constants": {\n ' + ",\n ".join(kinds) + "}\n}\n"
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Name a file in a folder that exists") from error


def validation(chip: str, stack: str, mode: Mode) -> Validation:
    """Returns what `validation.json` knows of a chip, stack and mode.

    Raises:
      ConfigError: the file cannot be read.
    """
    found = _validations().get(f"{chip}/{stack}/{mode}")
    if found is None:
        return Validation(reason=f"not validated: no published result was replayed on {chip} with {stack} constants")
    return Validation(
        rows=found["rows"],
        sources=tuple(found["sources"]),
        errors={metric: Errors(**found[metric]) for metric in VALIDATED_METRICS if metric in found},
        command=found["command"],
    )


@functools.cache
def _validations() -> Mapping[str, Any]:
    return _read(VALIDATION) if VALIDATION.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}). Restore it, or write it again") from error
