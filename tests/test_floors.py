"""Who may import whom: the floors of WORKSPACE.md hold, no modules import in a circle, and JAX stays in its rooms.

The floors are read from WORKSPACE.md, so that the picture and the code cannot part.
"""

import ast
import functools
import graphlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOTS = ("nanoserve", "kernels", "experiments")
WITHOUT_JAX = ("specs", "trace", "roofline", "engine", "report")
SLOW_TO_IMPORT = {"jax", "flax", "optax", "orbax", "polars", "matplotlib"}

Imports = Mapping[str, set[str]]


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> source of every module; a package is its `__init__`."""
    paths = [path for root in ROOTS for path in sorted((REPOSITORY / root).rglob("*.py"))]
    return {name_of(path.relative_to(REPOSITORY)): ast.parse(path.read_text()) for path in paths}


def name_of(path: Path) -> str:
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


def statements(node: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements of a module; without `lazy` only those that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif lazy or not runs_later(child):
            yield from statements(child, lazy=lazy)


def runs_later(node: ast.AST) -> bool:
    """A function's body, or what is imported for annotations alone."""
    for_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return for_typing or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports_of(sources: Mapping[str, ast.Module], *, lazy: bool) -> dict[str, set[str]]:
    """Module -> what it imports: our modules by their full name, anything else by its first part."""
    return {
        name: {
            target
            for statement in statements(tree, lazy=lazy)
            for written in names_in(statement)
            for target in targets(written, sources)
        }
        for name, tree in sources.items()
    }


def names_in(statement: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    assert statement.level == 0, f"line {statement.lineno}: a relative import; write the whole name"
    return [f"{statement.module}.{alias.name}" for alias in statement.names]


def targets(written: str, sources: Mapping[str, ast.Module]) -> Iterator[str]:
    """What `a.b.c` means: our module `a.b.c`, or our module `a.b` that defines `c`, or the package `a`."""
    if written.split(".")[0] not in ROOTS:
        yield written.split(".")[0]
        return
    yield written if written in sources else written.rpartition(".")[0]


def reached(start: str, imports: Imports) -> set[str]:
    """Everything that importing `start` imports, packages on the way included."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [*imports.get(name, ()), *([name.rpartition(".")[0]] if "." in name else [])]
    return seen


def floors() -> dict[str, int]:
    """Room -> floor, from the numbered lines of WORKSPACE.md."""
    lines = re.findall(r"^(\d)  (\S.*?)(?:   .*)?$", (REPOSITORY / "WORKSPACE.md").read_text(), re.MULTILINE)
    return {room: int(floor) for floor, rooms in lines for room in rooms.split(", ")}


def room_of(module: str) -> str:
    """`nanoserve.engine.pages` is in the room `engine`; kernels and experiments are rooms themselves."""
    parts = module.split(".")
    return parts[1] if parts[0] == "nanoserve" and len(parts) > 1 else parts[0]


def upward(imports: Imports, floor_of: Mapping[str, int]) -> list[str]:
    """Imports that do not go down, in words."""
    return [
        f"{module} (floor {floor_of[room_of(module)]}) imports {target} (floor {floor_of[room_of(target)]})"
        for module, names in imports.items()
        for target in sorted(names)
        if target.split(".")[0] in ROOTS
        and room_of(target) != room_of(module)
        and floor_of[room_of(target)] >= floor_of[room_of(module)]
    ]


def test_every_room_has_one_floor():
    rooms = {room_of(name) for name in modules()} - {"nanoserve"}
    assert rooms == set(floors())


def test_imports_go_down_only():
    assert upward(imports_of(modules(), lazy=True), floors()) == []


def test_kernels_know_nothing_but_specs():
    below = {
        room_of(target)
        for name, names in imports_of(modules(), lazy=True).items()
        if name.startswith("kernels")
        for target in names
        if target.startswith("nanoserve")
    }
    assert below == {"specs"}


def test_no_modules_import_in_a_circle():
    graphlib.TopologicalSorter(imports_of(modules(), lazy=True)).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("room", WITHOUT_JAX)
def test_importing_a_room_does_not_import_jax(room: str):
    imports = imports_of(modules(), lazy=False)
    inside = [name for name in imports if name.startswith(f"nanoserve.{room}")]
    assert inside
    assert [name for name in inside if {"jax", "flax"} & reached(name, imports)] == []


@pytest.mark.parametrize("module", ["experiments.run", "nanoserve.experiment", "nanoserve.specs.config"])
def test_a_misspelt_config_is_reported_before_anything_slow_is_imported(module: str):
    assert reached(module, imports_of(modules(), lazy=False)) & SLOW_TO_IMPORT == set()


def planted(**sources: str) -> dict[str, ast.Module]:
    return modules() | {name.replace("__", "."): ast.parse(text) for name, text in sources.items()}


def test_a_lazy_import_of_a_room_above_is_found():
    sources = planted(nanoserve__specs__planted="def f():\n    from nanoserve.engine.types import Plan")
    assert upward(imports_of(sources, lazy=True), floors()) == [
        f"nanoserve.specs.planted (floor {floors()['specs']}) imports nanoserve.engine.types "
        f"(floor {floors()['engine']})"
    ]


def test_a_circle_is_found():
    sources = planted(
        nanoserve__trace__one="from nanoserve.trace import two", nanoserve__trace__two="import nanoserve.trace.one"
    )
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports_of(sources, lazy=True)).prepare()


def test_jax_is_found_through_another_room():
    sources = planted(
        nanoserve__engine__planted="from nanoserve.model.step import DecodeRows",
        nanoserve__engine__lazy="def f():\n    import jax",
    )
    imports = imports_of(sources, lazy=False)
    assert "jax" in reached("nanoserve.engine.planted", imports)
    assert "jax" not in reached("nanoserve.engine.lazy", imports)
