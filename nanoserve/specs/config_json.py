"""A `config.json` from outside, read key by key with checks.

Invariants: nothing in the file is believed before it is checked; whatever is wrong is a `WeightsError` that names the
file and the key. Next: `huggingface`, which knows the keys.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

from nanoserve.specs.errors import WeightsError

# Real files have 1-5 kB; the bounds keep a hostile one from filling memory or overflowing a float.
MAX_CONFIG_BYTES = 2**20
MAX_INTEGER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object from outside, read key by key with checks. JSON's null is an absent key, as in `transformers`.

    Attributes:
      values: the object.
      where: the file, and the path of keys within it.
    """

    values: Mapping[str, Any]
    where: str

    def fail(self, message: str) -> NoReturn:
        """Raises a `WeightsError` that says where."""
        raise WeightsError(f"{self.where}: {message}.")

    def missing(self, key: str) -> NoReturn:
        """Raises a `WeightsError` about an absent key."""
        self.fail(f"the key {key!r} is missing; the config.json of a transformers checkpoint has it")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to `MAX_INTEGER`."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_INTEGER:
            self.fail(f"{key} must be a whole number from 1 to {MAX_INTEGER}, not {shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e300:
            self.fail(f"{key} must be a positive finite number, not {shown(value)}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.fail(f"{key} must be true or false, not {shown(value)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.fail(f"{key} must be a string, not {shown(value)}")
        return value

    def child(self, key: str) -> "Fields | None":
        """A nested object, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(f"{key} must be an object, not {shown(value)}")
        return Fields(value, where=f"{self.where}: {key}") if value else None

    def refuse(self, *keys: str) -> None:
        """Fails when one of these switches is on: no decoder here computes what it asks for."""
        for key in keys:
            if self.boolean(key, default=False):
                self.fail(f"{key} = true is not supported; only checkpoints without it can be read")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            self.missing(key)
        return default if value is None else value


def shown(value: Any) -> str:
    """A value from outside, short enough for a message."""
    return repr(value)[:60]


def load_json(file: pathlib.Path) -> Mapping[str, Any]:
    """Returns the object in a file.

    Raises:
      WeightsError: the file is missing, empty, too large, or holds no JSON object.
    """
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise WeightsError(
            f"{file}: cannot be read ({error.strerror}). Give the folder that config.json is in."
        ) from error
    if not data or len(data) > MAX_CONFIG_BYTES:
        size = "empty" if not data else f"larger than {MAX_CONFIG_BYTES} bytes"
        raise WeightsError(f"{file}: the file is {size}. Download it again.")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: not valid JSON ({error}). Download it again.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: must hold a JSON object, not {shown(values)}.")
    return values
