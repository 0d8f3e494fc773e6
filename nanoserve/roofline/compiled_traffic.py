"""What one instruction of a compiled program has to move through HBM, read off its text: the floor under its time.

A fusion that slices a stack reads the slice, one that updates an array in place writes the update, and what lies in
on-chip memory moves nothing. Everything else is read and written whole, once.

Next: `compiled`, which parses the text.
"""

from collections.abc import Iterator

from nanoserve.roofline.compiled import Array, Instruction, Program

_SLICES = ("dynamic-slice", "slice", "gather")
_SAME_DATA = ("bitcast", "reshape", "get-tuple-element", "tuple")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # and the operand that holds what is new
_PARTS_OF_ASYNC = ("copy-done", "async-done", "async-update", "all-reduce-done", "all-gather-done")
_MOVES_NOTHING = ("bitcast", "get-tuple-element", "tuple", "parameter", "constant", *_PARTS_OF_ASYNC)


def hbm_bytes(program: Program, computation: str, instruction: Instruction) -> int:
    """Returns the bytes that one execution reads from HBM and writes to it at least; no loop's body.

    Args:
      program: that holds the instruction.
      computation: the name of the computation that it is in.
      instruction: a fusion, a product, a copy, ...
    """
    if instruction.opcode in _MOVES_NOTHING:
        return 0
    names = dict.fromkeys(instruction.operands)
    return sum(_read(program, computation, name, [instruction]) for name in names) + _written(program, instruction)


def _read(program: Program, computation: str, name: str, users: list[Instruction]) -> int:
    """Bytes of array `name` that these users of it read."""
    array = _array(program, computation, name)
    if array is None or array.on_chip:
        return 0
    if program.computations[computation][-1].name == name:
        return array.size_bytes  # what a fusion gives back as it is, the fusion around it reads
    return min(array.size_bytes, sum(_read_by(program, computation, name, array, user) for user in users))


def _read_by(program: Program, computation: str, name: str, array: Array, user: Instruction) -> int:
    if user.opcode == "fusion":
        places = [place for place, operand in enumerate(user.operands) if operand == name]
        return sum(_read_inside(program, user.called[0], place) for place in places)
    if user.operands[0] == name and user.opcode in _SLICES:
        return user.results[0].size_bytes
    if user.operands[0] == name and user.opcode in _UPDATES:
        return 0
    if user.opcode in _SAME_DATA:
        return _read(program, computation, user.name, _users(program, computation, user.name))
    return array.size_bytes


def _read_inside(program: Program, fused: str, place: int) -> int:
    """Bytes that a fusion reads of its operand number `place`."""
    parameter = next(
        each for each in program.computations[fused] if each.opcode == "parameter" and each.attributes == str(place)
    )
    return _read(program, fused, parameter.name, _users(program, fused, parameter.name))


def _written(program: Program, instruction: Instruction) -> int:
    results = [array for array in instruction.results if not array.on_chip]
    if instruction.opcode != "fusion":
        return sum(array.size_bytes for array in results[:1])  # a start's further results are its operands
    fused = instruction.called[0]
    roots = list(_roots(program, fused, program.computations[fused][-1]))
    if len(roots) != len(instruction.results):
        return sum(array.size_bytes for array in results)
    pairs = zip(roots, instruction.results, strict=True)
    return sum(_new_bytes(program, fused, root) for root, array in pairs if not array.on_chip)


def _roots(program: Program, computation: str, root: Instruction) -> Iterator[Instruction]:
    """The instructions that make a fusion's results, behind tuples and changes of shape."""
    by_name = {each.name: each for each in program.computations[computation]}
    if root.opcode == "tuple":
        for name in root.operands:
            yield from _roots(program, computation, by_name[name])
    elif root.opcode in _SAME_DATA and root.operands[0] in by_name:
        yield from _roots(program, computation, by_name[root.operands[0]])
    else:
        yield root


def _new_bytes(program: Program, computation: str, root: Instruction) -> int:
    place = _UPDATES.get(root.opcode)
    if place is None:
        return sum(array.size_bytes for array in root.results)
    update = _array(program, computation, root.operands[place])
    return update.size_bytes if update else 0


def _users(program: Program, computation: str, name: str) -> list[Instruction]:
    return [each for each in program.computations[computation] if name in each.operands]


def _array(program: Program, computation: str, name: str) -> Array | None:
    """The array that an instruction makes; None for a tuple, or a name from elsewhere."""
    for each in program.computations[computation]:
        if each.name == name:
            return each.results[0] if len(each.results) == 1 else None
    return None
