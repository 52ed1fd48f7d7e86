"""What a compiled kernel tells a GPU to do: its machine code (SASS), read, and the work of one class counted.

A pass over a row is a loop that reads global memory. Its body may branch, for blocks at the end of a row; the
usual turn is the shortest way round that reads a whole block. What a class takes is the instructions of that
turn, those that a predicate switches off included, over the classes that a lane handles in it: the bytes that
it reads over the bytes of a class. What stands outside of the loops is done once a row.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import networkx

__all__ = ["KINDS", "Instruction", "Kernel", "Loop", "named", "parse"]

_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L\w*):")
_TARGET = re.compile(r"`\((\.L\w+)\)")
_WIDTH = re.compile(r"\.(?:U|S)?(8|16|32|64|128|256)\b")

# Operations by how many of them a multiprocessor of compute capability 9.0 does in a clock: 16 of the special
# function unit; 64 comparisons, integer sums, shifts, logic; 128 sums, products and fused ones of float32.
# (NVIDIA, CUDA C++ Best Practices Guide 13.0, "Throughput of Native Arithmetic Instructions". Choosing by a
# predicate, permuting bytes and packing are not in its table; they count as comparisons and shifts.) Moves,
# jumps, scalar operations and integer products are "other": of these only the issue slots are counted.
KINDS = {
    "memory": {"LDG", "STG", "LD", "ST", "LDL", "STL", "LDS", "STS", "ATOMS", "ATOMG", "RED"},
    "special": {"MUFU"},
    "half_rate": {
        "FMNMX", "FMNMX3", "FSEL", "FSETP", "FSET", "IADD3", "IADD", "VIADD", "ISETP", "IMNMX", "VIMNMX",
        "LEA", "LOP3", "SHF", "SHL", "SHR", "PRMT", "SEL", "SGXT", "F2FP", "F2F", "BMSK",
    },
    "full_rate": {"FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "HADD2", "HMUL2", "HFMA2"},
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """`@P0 BRA.U UP1, .L_x_3`: whether a predicate may switch it off, name, operands, where a branch goes."""

    name: str
    operands: str = ""
    predicated: bool = False
    target: str | None = None

    @property
    def operation(self) -> str:
        return self.name.partition(".")[0]

    @property
    def kind(self) -> str:
        return next((kind for kind, names in KINDS.items() if self.operation in names), "other")

    @property
    def bytes(self) -> int:
        """That a lane reads or writes; 0 of what is no access to memory."""
        if self.kind != "memory":
            return 0
        width = _WIDTH.search(self.name.removeprefix(self.operation))
        return int(width[1]) // 8 if width else 4

    @property
    def ends(self) -> bool:
        """Whether what stands behind it never follows on it."""
        return self.operation in ("BRA", "EXIT") and not self.predicated and "," not in self.operands


def parse(text: str) -> list[Instruction | str]:
    """Instructions and labels of a kernel as nvdisasm writes them, in their order; a label is a string."""
    found: list[Instruction | str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            found.append(label[1])
        elif match := _LINE.search(line):
            predicate, name, operands = match.groups()
            target = _TARGET.search(operands) if name.partition(".")[0] == "BRA" else None
            found.append(Instruction(name, operands, predicate is not None, target and target[1]))
    return found


@dataclass(frozen=True)
class Loop:
    """A loop over global memory.

    Attributes:
        entry: the piece of code that it is entered by; pieces: all of it.
        body: all its instructions; turn: those of the usual turn.
    """

    entry: int
    pieces: frozenset[int]
    body: tuple[Instruction, ...]
    turn: tuple[Instruction, ...]

    def read(self) -> int:
        """Bytes that a lane reads in a turn."""
        return sum(each.bytes for each in named(self.turn, "LDG"))

    def classes(self, size: int) -> int:
        """That a lane handles in a turn, each read in `size` bytes.

        Raises:
            ValueError: what is read is no whole number of classes: something else is read too.
        """
        if self.read() == 0 or self.read() % size:
            raise ValueError(f"a turn reads {self.read()} bytes, expected whole classes of {size} bytes")
        return self.read() // size

    def per_class(self, size: int) -> dict[str, float]:
        """Instructions of a class, by kind."""
        classes = self.classes(size)
        return {kind: count / classes for kind, count in Counter(each.kind for each in self.turn).items()}


class Kernel:
    """The code of one kernel, as pieces that are run from their begin to their end.

    Args:
        text: as nvdisasm writes it.
        block: bytes that a lane reads of one block of classes.
    """

    def __init__(self, text: str, block: int) -> None:
        self.block = block
        self.pieces: list[list[Instruction]] = []
        self.graph = networkx.DiGraph()
        labels: dict[str, int] = {}
        fresh = True
        for item in parse(text):
            if fresh or isinstance(item, str):
                self.pieces.append([])
                self.graph.add_node(len(self.pieces) - 1)
            if isinstance(item, str):
                labels[item] = len(self.pieces) - 1
                fresh = False
            else:
                self.pieces[-1].append(item)
                fresh = item.operation in ("BRA", "EXIT")
        for number, piece in enumerate(self.pieces):
            last = piece[-1] if piece else None
            if last is not None and last.target in labels:
                self.graph.add_edge(number, labels[last.target])
            if (last is None or not last.ends) and number + 1 < len(self.pieces):
                self.graph.add_edge(number, number + 1)

    @property
    def instructions(self) -> Iterator[Instruction]:
        return self._code(range(len(self.pieces)))

    @cached_property
    def loops(self) -> list[Loop]:
        """Loops that read global memory, in the order of the code."""
        rounds = (
            part for part in networkx.strongly_connected_components(self.graph)
            if len(part) > 1 or self.graph.has_edge(*(2 * list(part)))
        )  # fmt: skip
        found = (self._loop(part) for part in rounds if named(self._code(part), "LDG"))
        return sorted(found, key=lambda loop: loop.entry)

    @property
    def passes(self) -> list[Loop]:
        """One loop for each pass over a row. Barriers part them; of several loops between two barriers, the
        turns of an unrolled one and those that are left, it is the one that reads the most in a turn."""
        within = {number for loop in self.loops for number in loop.pieces}
        free = self.graph.subgraph(
            number for number, piece in enumerate(self.pieces) if number in within or not named(piece, "BAR")
        )
        groups: list[list[Loop]] = []
        for loop in self.loops:
            if groups and networkx.has_path(free, groups[-1][0].entry, loop.entry):
                groups[-1].append(loop)
            else:
                groups.append([loop])
        return [max(group, key=Loop.read) for group in groups]

    def _code(self, numbers: Iterable[int]) -> Iterator[Instruction]:
        return (each for number in numbers for each in self.pieces[number])

    def _loop(self, part: set[int]) -> Loop:
        inside = self.graph.subgraph(part)
        entries = {end for start, end in self.graph.edges if end in part and start not in part}
        if len(entries) != 1:
            raise ValueError(f"a loop is entered at {len(entries)} places, expected 1")
        (entry,) = entries
        ends = list(inside.predecessors(entry))
        way = networkx.DiGraph(edge for edge in inside.edges if edge[1] != entry)
        way.add_node(entry)
        # For each piece, from bytes read to the shortest way that reads so many, (instructions, pieces).
        ways: dict[int, dict[int, tuple[int, list[int]]]] = {}
        for number in networkx.topological_sort(way):  # raises where a loop has another within it
            before = [ways[other] for other in way.predecessors(number)] or [{0: (0, [])}]
            piece, found = self.pieces[number], ways.setdefault(number, {})
            here = sum(each.bytes for each in named(piece, "LDG"))
            for read, (count, path) in (way for some in before for way in some.items()):
                longer = (count + len(piece), [*path, number])
                found[read + here] = min(longer, found.get(read + here, longer))
        round_it = [
            shortest for number in ends for read, shortest in ways[number].items() if read >= self.block
        ]
        if not round_it:
            raise ValueError(f"no turn of a loop reads a block of {self.block} bytes")
        _, path = min(round_it)
        return Loop(entry, frozenset(part), tuple(self._code(sorted(part))), tuple(self._code(path)))

    def reads_before_stores(self) -> list[Instruction]:
        """Global reads that may come between the last barrier before a row is written and the writing loops.

        Each warp writes over the student's logits when it gets there. Behind the barrier a lane may read
        nothing but its own classes: those of the loops, and of turns that stand before them on their own.
        """
        writes = [loop for loop in self.loops if named(loop.body, "STG")]
        if not writes:
            raise ValueError("no loop both reads and writes global memory")
        found: list[Instruction] = []
        seen = {number for loop in writes for number in loop.pieces}
        ahead = [number for loop in writes for number in self.graph.predecessors(loop.entry)]
        while ahead:
            number = ahead.pop()
            if number in seen:
                continue
            seen.add(number)
            for each in reversed(self.pieces[number]):
                if each.operation == "BAR":
                    break
                if each.operation == "LDG":
                    found.append(each)
            else:
                ahead += self.graph.predecessors(number)
        return found


def named(instructions: Iterable[Instruction], *operations: str) -> list[Instruction]:
    """Those of some operations, such as "LDG" and "STG"."""
    return [each for each in instructions if each.operation in operations]
