"""Reads the text of a compiled program: its matrix products and its collectives, each as often as it runs.

XLA's own cost analysis counts the body of a loop once, however often it runs (tests/test_cost.py shows it). The text
says how often: XLA notes a loop's trip count where it knows it. What is read here is what the CPU's compiler writes,
which leaves matrix products as `dot`; a GPU's has calls of libraries in their place.
"""

import dataclasses
import functools
import math
import re
from typing import Any

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective as one device runs it."""

    kind: str
    sizes: tuple[int, ...]  # elements of each array that it returns.
    num_bytes: int  # of all of them.
    times: int  # how often it runs in one call of the program.


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one call of the program."""

    products: float  # FLOPs of matrix products.
    products_once: float  # the same with the body of each loop counted once, as XLA's analysis counts it.
    collectives: tuple[Collective, ...]

    @property
    def collective_bytes(self) -> int:
        return sum(each.num_bytes * each.times for each in self.collectives)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    opcode: str
    type: str
    rest: str  # operands and attributes.


def read(compiled: Any, unknown_trips: int) -> Program:
    """Counts what a compiled program does.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` returns, for a CPU.
      unknown_trips: how often a loop runs of which XLA knows no trip count: here the loop over a step's tokens, L
        times at most. (The search's walks down and up a tree are such loops too, and have no product in them.)
    """
    computations, entry = _parse(compiled.as_text())

    @functools.cache
    def count(name: str) -> Program:
        instructions = computations[name]
        total, once, found = 0.0, 0.0, []
        for each in instructions.values():
            if each.opcode == "dot":
                flops = _dot_flops(each, instructions)
                total, once = total + flops, once + flops
            collective = _COLLECTIVE.fullmatch(each.opcode)
            if collective:
                found.append(_collective(collective[1], each))
                continue  # what it calls adds two numbers.
            trips = 1
            if each.opcode == "while":
                known = _TRIPS.search(each.rest)
                trips = int(known[1]) if known else unknown_trips
            called = [count(name) for name in _CALLED.findall(each.rest)]
            branches = [count(name) for name in _branches(each.rest)]
            if branches:  # one of them runs: the one that costs most.
                called.append(max(branches, key=lambda branch: branch.products))
            for inner in called:
                total, once = total + trips * inner.products, once + inner.products_once
                found += [dataclasses.replace(c, times=trips * c.times) for c in inner.collectives]
        return Program(total, once, tuple(found))

    return count(entry)


def analysis(compiled: Any) -> dict[str, float]:
    """XLA's own cost analysis: `flops`, `bytes accessed` and more, with the body of each loop counted once."""
    found = compiled.cost_analysis()
    return found[0] if isinstance(found, list) else found  # jax before 0.5 has a list of one.


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """The computations of a program, each as its instructions by name; and the name of the one that it starts with."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        header, name = _HEADER.match(line), _NAME.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif name:
            rest = line[name.end() :]
            end = _end_of_type(rest)
            opcode = _OPCODE.match(rest, end)
            if opcode:
                current[name[1]] = _Instruction(opcode[1], rest[:end], rest[opcode.end() :])
    if not entry:
        raise ValueError("The text has no ENTRY computation: it is not that of a compiled program.")
    return computations, entry


def _end_of_type(rest: str) -> int:
    """Where the type at the beginning of an instruction ends; that of a tuple has brackets within brackets."""
    if not rest.startswith("("):
        return rest.index(" ")
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"An instruction's type does not end: {rest[:80]}")


def _branches(rest: str) -> list[str]:
    return [name.strip().lstrip("%") for group in _BRANCHES.findall(rest) for name in (group[0] or group[1]).split(",")]


def _sizes(type_: str) -> list[tuple[str, list[int]]]:
    return [(name, [int(d) for d in dims.split(",") if d]) for name, dims in _ARRAY.findall(type_)]


def _dot_flops(dot: _Instruction, instructions: dict[str, _Instruction]) -> float:
    """Two for each pair of numbers that is multiplied and added."""
    left = _OPERAND.search(dot.rest)
    if left is None:
        raise ValueError(f"A product without an operand: {dot.rest[:80]}")
    (_, dims), (_, result) = _sizes(instructions[left[1]].type)[0], _sizes(dot.type)[0]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2.0 * math.prod(result) * math.prod(dims[axis] for axis in axes)


def _collective(kind: str, instruction: _Instruction) -> Collective:
    arrays = _sizes(instruction.type)
    sizes = tuple(math.prod(dims) for _, dims in arrays)
    widths = [_BYTES[name] for name, _ in arrays]
    return Collective(kind, sizes, sum(n * width for n, width in zip(sizes, widths, strict=True)), 1)
