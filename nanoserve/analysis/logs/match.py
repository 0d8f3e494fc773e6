"""Which of the four logs a file is, and which of its columns is which.

A file is the log whose required columns it has; a column is what its name says, or what the caller says it is. Two
columns that could be the same are settled by the better name, and that is reported. Next: `names`, the synonyms;
`cells`, what becomes of the values.
"""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence

from nanoserve.analysis.logs import names, schema
from nanoserve.analysis.logs.names import Meaning
from nanoserve.analysis.wording import counted
from nanoserve.specs.errors import ConfigError, TraceError, nearest

_TELLING: dict[str, frozenset[str]] = {
    "api": frozenset({"prompt_tokens"}),
    "errors": frozenset({"error_type"}),
    "telemetry": frozenset(schema.TELEMETRY_COLUMNS) - {"time_s", "replica", "used_tokens"},
    "app": frozenset({"session_id"}),
}
"""Log -> columns that only it has: a file without any of them is not this log. In the order in which they are tried."""


@dataclasses.dataclass(frozen=True)
class Matched:
    """What a file's columns are.

    Attributes:
      log: which log the file is.
      columns: canonical name -> the file's name and the unit in it.
      unused: columns of the file that mean nothing to us.
    """

    log: str
    columns: Mapping[str, tuple[str, str | None]]
    unused: tuple[str, ...]

    def sentence(self) -> str:
        """As a note: which columns were taken for which."""
        renamed = [f"{source} as {column}" for column, (source, _) in self.columns.items() if source != column]
        kept = len(self.columns) - len(renamed)
        said = [f"{counted(kept, 'column')} by name"] if kept else []
        text = f"read as the {self.log} log: {', '.join(said + renamed)}"
        return text + (f"; not used: {', '.join(self.unused)}" if self.unused else "")


def match(path: str, present: Sequence[str], columns: Mapping[str, str] | None = None) -> Matched:
    """Finds out what a file is.

    Args:
      path: for messages. present: the names of its columns.
      columns: canonical name -> the file's name, where the caller knows better than the names say.

    Raises:
      TraceError: the file is none of the four logs; the message lists what is there and what it was matched to.
      ConfigError: `columns` has a name that no log has.
    """
    wanted = dict(columns or {})
    _check_wanted(wanted)
    found = {log: _assign(log, present, wanted) for log in _TELLING}
    for log, telling in _TELLING.items():
        if telling & found[log].keys() and not _missing(log, found[log]):
            return _with_companions(log, present, wanted, found)
    raise TraceError(_unmatched_message(path, present, found))


def _with_companions(
    log: str, present: Sequence[str], wanted: Mapping[str, str], found: Mapping[str, dict[str, tuple[str, str | None]]]
) -> Matched:
    """An api log may carry what the application or the error log would say: a joined table is read as it is."""
    assigned = dict(found[log])
    for other in ("app", "errors") if log == "api" else ():
        taken = {source for source, _ in assigned.values()}
        more = _assign(other, [name for name in present if name not in taken], wanted)
        # A bare `error` or `type` beside an api log may be anything: only the plain names are taken from there.
        plain = {name: entry for name, entry in more.items() if other == "app" or entry[0] == name}
        assigned |= {name: entry for name, entry in plain.items() if name not in assigned}
    taken = {source for source, _ in assigned.values()}
    return Matched(log, assigned, tuple(name for name in present if name not in taken))


def _assign(log: str, present: Sequence[str], wanted: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Canonical name -> the best named column of the file, and its unit."""
    explicit = {name: source for name, source in wanted.items() if name in schema.COLUMNS[log] and source in present}
    offers: list[tuple[Meaning, str]] = [
        (meaning, name) for name in present if name not in explicit.values() for meaning in names.meanings(name, log)
    ]
    assigned: dict[str, tuple[str, str | None]] = {}
    for name, source in explicit.items():
        units = (meaning.unit for meaning in names.meanings(source, log) if meaning.column == name)
        assigned[name] = (source, next(units, None))
    taken = set(explicit.values())
    for meaning, name in sorted(offers, key=lambda offer: offer[0].rank):
        if meaning.column not in assigned and name not in taken:
            assigned[meaning.column] = (name, meaning.unit)
            taken.add(name)
    return {name: assigned[name] for name in schema.COLUMNS[log] if name in assigned}


def _missing(log: str, assigned: Collection[str]) -> list[str]:
    return [name for name in schema.REQUIRED[log] if name not in assigned]


def _check_wanted(wanted: Mapping[str, str]) -> None:
    known = set(itertools.chain.from_iterable(schema.COLUMNS.values()))
    for name in wanted:
        if name not in known:
            raise ConfigError(f"columns: there is no column '{name}'.{nearest(name, known)}")


def _unmatched_message(path: str, present: Sequence[str], found: Mapping[str, Mapping[str, tuple]]) -> str:
    """Says for the log that comes closest what is missing, what was matched, and what is there."""
    log = max(found, key=lambda log: (len(found[log]), log == "api"))
    missing = _missing(log, found[log]) or sorted(_TELLING[log])[:3]
    taken = {source for source, _ in found[log].values()}
    hints = "".join(_hint(name, log, [source for source in present if source not in taken]) for name in missing)
    matched = ", ".join(f"{source} as {name}" for name, (source, _) in found[log].items()) or "nothing"
    return (
        f"{path}: is no api, telemetry, app or errors log, nor a known trace. As the {log} log, which comes closest, "
        f"it has no {', '.join(missing)}.{hints} Columns in the file: {_listing(present)}. Matched: {matched}. Say "
        f"which column it is with columns={{'{missing[0]}': '...'}} (--columns={missing[0]}=...), or rename it"
    )


def _hint(name: str, log: str, free: Sequence[str]) -> str:
    """The file's column, of those that mean nothing yet, that looks most like one of a canonical column's names."""
    by_snake = {names.snake(source): source for source in free}
    for synonym in names.SYNONYMS[log].get(name, name).split():
        advice = nearest(synonym, by_snake).split(" Valid")[0]
        if "Did you" in advice:
            return f" For {name}:{advice}"
    return ""


def _listing(present: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in present[:20])
    return shown + (f" and {len(present) - 20} more" if len(present) > 20 else "")
