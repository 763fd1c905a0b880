"""Machine code of rules, as a disassembler reads it, followed through its registers, and compared with a program."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field

from fusedstep import _cpu
from tests.programs.lists import FIRST_RESULT, MOST_SCALARS, OPS, TAKES

__all__ = ["OBJDUMP", "VECTORS", "CodeError", "check", "disassembled"]

OBJDUMP = shutil.which("objdump")
VECTORS = {"avx2": ("ymm", 32, 16), "avx512": ("zmm", 64, 32)}  # name, bytes, and number of registers
ADDRESSES = ("rax", "rcx", "r8", "r9", "r10", "r11", "rdi")  # of arrays; the last one is the update
UPDATE = 6
TABLE = ("zero", "one", "top bit", "all bits")  # behind the scalars

# The instructions of each operation: the one that IEEE 754 describes, or comparisons and selections.
KINDS = {"add": ["add"], "subtract": ["sub"], "multiply": ["mul"], "divide": ["div"], "sqrt": ["sqrt"]}
KINDS |= {"negative": ["xor"], "absolute": ["andn"], "sign": ["add", "cmpneq_oq", "and", "or", "blend"]}
KINDS |= {"maximum": ["cmpgt_oq", "cmpunord", "or", "blend"], "minimum": ["cmplt_oq", "cmpunord", "or", "blend"]}
KINDS |= {"less": ["cmplt_oq"], "less_equal": ["cmple_oq"], "equal": ["cmpeq"], "where": ["blend"]}
KINDS |= {"logical_and": ["and"], "logical_or": ["or"], "logical_not": ["not"]}
PLAIN = {kind for kinds in KINDS.values() for kind in kinds} - {"blend", "not"} | {"cmpneq"}


class CodeError(Exception):
    """Code that is wrong."""


class Values:
    """Numbers for all values that are computed: equal expressions have equal numbers."""

    def __init__(self):
        self._numbers = {}

    def __call__(self, kind, *operands):
        operands = sorted(operands) if kind in ("add", "mul") else operands
        return self._numbers.setdefault((kind, *operands), len(self._numbers))


def is_reserved(prefix, name):
    """Return whether a prefix of AVX-512 is one that processors refuse, in bits that disassemblers do not look at."""
    wrong_width = prefix[2] >> 7 != name.endswith(("pd", "q"))
    has_first = prefix[3] >> 3 & 1 == 0  # whether there is a first source above 15
    return prefix[0] == 0x62 and (wrong_width or (has_first and name[:6] in ("vmovup", "vsqrtp")))


def disassembled(codes, folder):
    """Return the instructions of each code, as (address in the code, name, operands)."""
    blob, starts = bytearray(), []
    for code in codes:
        blob += b"\x90" * (-len(blob) % 64)
        starts.append(len(blob))
        blob += code + b"\x90" * 16  # wrong code does not swallow what follows
    path = folder / "code"
    path.write_bytes(blob)
    command = [OBJDUMP, "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"^ *([0-9a-f]+):\t([^#\n]*)", text, re.MULTILINE)]
    found, i = [], 0
    for start, code in zip(starts, codes, strict=True):
        body = []
        while i < len(lines) and lines[i][0] < start + len(code):
            address, line = lines[i]
            name, _, operands = line.strip().partition(" ")
            if name == "jne":
                operands = hex(int(operands, 16) - start)
            if is_reserved(blob[address : address + 4], name):
                name = "(bad)"
            if address >= start:
                body.append((address - start, name, operands.strip().split(",") if operands else []))
            i += 1
        found.append(body)
    return found


def meaning(lists, ending, values):
    """Return what a program stores, array -> value; its instructions; and the arrays that it touches."""
    names = list(OPS)
    elements = [(names[op], operands) for op, *operands in lists["elements"]]
    outputs = {2 + j: operand for j, operand in enumerate(lists["states_after"])}
    if ending == "param":
        elements.append(("subtract", [0, lists["update"]]))
    outputs[0 if ending == "param" else UPDATE] = (
        FIRST_RESULT + len(elements) - 1 if ending == "param" else lists["update"]
    )
    live = set(outputs.values())
    for i, (name, operands) in reversed(list(enumerate(elements))):
        if FIRST_RESULT + i in live:
            live.update(operands[: len(TAKES[name])])
    done = {array: values("array", array) for array in range(FIRST_RESULT)}
    done |= {-1 - k: values("scalar", k) for k in range(MOST_SCALARS)}
    zero, kinds = values("zero"), Counter()
    for i, (name, operands) in enumerate(elements):
        if FIRST_RESULT + i not in live:
            continue
        kinds.update(KINDS[name])
        x = [done[operand] for operand in operands[: len(TAKES[name])]]
        for j, takes in enumerate(TAKES[name]):
            if takes == "c" and operands[j] < 0:
                x[j] = values("cmpneq", x[j], zero)
                kinds["cmpneq"] += 1
        if name == "sign":
            flushed = values("add", x[0], zero)
            one = values("or", values("and", flushed, values("top bit")), values("one"))
            value = values("blend", values("cmpneq_oq", flushed, zero), one, flushed)
        elif name in ("maximum", "minimum"):
            beyond = values(KINDS[name][0], *x)
            value = values("blend", values("or", beyond, values("cmpunord", x[0], x[0])), *x)
        elif name in ("negative", "absolute"):
            value = values(KINDS[name][0], values("top bit"), x[0])
        else:
            value = values(KINDS[name][0], *x)
        done[FIRST_RESULT + i] = value
    touched = {operand for operand in live if 0 <= operand < FIRST_RESULT} | outputs.keys()
    return {array: done[operand] for array, operand in outputs.items()}, kinds, touched


@dataclass
class Follower:
    """Runs code with values that are not known, and refuses each instruction that is not foreseen."""

    isa: str
    letter: str  # the last one of instructions: s or d
    outputs: set[int]
    touched: set[int]
    scalars: int
    values: Values
    registers: dict[str, int] = field(default_factory=dict)
    stored: dict[int, int] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def follow(self, code):
        """Run code from its first to its last instruction, with the loop twice."""
        size = VECTORS[self.isa][1]
        *ending, target = [code[-4][1:], code[-2][1:], code[-1][1:], (code[-3][1], []), code[-3][2]]
        wanted = [("add", ["rdx", hex(size)]), ("vzeroupper", []), ("ret", []), ("jne", [])]
        top = next((i for i, each in enumerate(code) if [hex(each[0])] == target), None)
        if ending != wanted or not top or code[top][0] % 32 or code[0][1] != "endbr64":
            raise CodeError(f"begins with {code[0]} and ends with {code[-4:]}")
        self.enter(code[1:top])
        held = dict(self.registers)
        for _ in range(2):
            self.stored, self.kinds = {}, Counter()
            for _, name, operands in code[top:-4]:
                self.run(name, operands)
            if {key: self.registers[key] for key in held} != held:
                raise CodeError("overwrites a number that the loop holds")

    def enter(self, code):
        """Look at what comes before the loop: the ends of arrays, minus their bytes, and numbers that are held."""
        expected = []
        for j in sorted(self.touched):
            expected.append(("mov", [ADDRESSES[j], f"QWORD PTR [rdi+{hex(8 * j)}]"]))
            expected.append(("add", [ADDRESSES[j], "rdx"]))
        expected.append(("neg", ["rdx"]))
        found = [(name, [operand.replace("[rdi]", "[rdi+0x0]") for operand in operands]) for _, name, operands in code]
        if found[: len(expected)] != expected:
            raise CodeError(f"enters with {found}, expected {expected}")
        for name, operands in found[len(expected) :]:
            if name == "nop" and not operands:
                continue
            if not name.startswith("vmovup") or "PTR [rsi" not in operands[1]:
                raise CodeError(f"{name} {operands} stands before the loop")
            self.run(name, operands)

    def run(self, name, operands):
        if name == f"vmovup{self.letter}" and "PTR" in operands[0]:
            array = self.array(operands[0])
            if array not in self.outputs or array in self.stored:
                raise CodeError(f"stores to array {array}")
            self.stored[array] = self.source(operands[1])
            return
        to, _, mask = operands[0].partition("{")
        if name == {"s": "vpternlogd", "d": "vpternlogq"}[self.letter] and operands[3:] == ["0xea"]:
            self.blend_bits(to, mask[:-1], *operands[1:3])
            return
        sources = [self.source(text) for text in operands[1:]]
        value = sources[0] if name == f"vmovup{self.letter}" and not mask else self.computed(name, sources, mask[:-1])
        self.registers[self.register(to)] = value

    def blend_bits(self, to, mask, and_bits, or_bits):
        """Run three operations in one: of bits, and a selection of what has been there."""
        before = self.source(to)
        bits = self.values("or", self.values("and", before, self.source(and_bits)), self.source(or_bits))
        self.registers[self.register(to)] = self.values("blend", self.registers[mask], bits, before)
        self.kinds.update(["and", "or", "blend"])

    def computed(self, name, sources, mask):
        kind = name[1:-2] if name[:1] == "v" and name[-2:] == "p" + self.letter else ""
        if kind == "blendm" and self.isa == "avx512":
            kind, sources = "blend", [self.registers[mask], *reversed(sources)]
        elif kind == "blendv" and self.isa == "avx2":
            kind, sources = "blend", sources[::-1]
        elif name in ("kandw", "korw", "knotw") and self.isa == "avx512":
            kind = name[1:-1]
        elif kind == "xor" and sources[1] == self.values("all bits"):
            kind, sources = "not", sources[:1]
        elif kind not in PLAIN or mask:
            raise CodeError(f"{name} is no instruction of a rule")
        self.kinds[kind] += 1
        return self.values(kind, *sources)

    def source(self, text):
        """Return the value of an operand: of a register, of the table, or of an array that is read."""
        if "PTR" not in text:
            return self.registers[self.register(text)]
        match = re.fullmatch(rf"{VECTORS[self.isa][0].upper()}WORD PTR \[rsi(?:\+0x([0-9a-f]+))?\]", text)
        if not match:
            array = self.array(text)
            if self.stored:
                raise CodeError(f"reads array {array} after a store")
            return self.values("array", array)
        place, rest = divmod(int(match[1] or "0", 16), VECTORS[self.isa][1])
        if rest or self.scalars <= place < MOST_SCALARS or place >= MOST_SCALARS + len(TABLE):
            raise CodeError(f"reads {text}, where the table has nothing")
        return self.values("scalar", place) if place < MOST_SCALARS else self.values(TABLE[place - MOST_SCALARS])

    def array(self, text):
        match = re.fullmatch(rf"{VECTORS[self.isa][0].upper()}WORD PTR \[(\w+)\+rdx\*1\]", text)
        array = ADDRESSES.index(match[1]) if match else -1
        if array not in self.touched:
            raise CodeError(f"{text} is in no array of the rule")
        return array

    def register(self, text):
        name, _, count = VECTORS[self.isa]
        match = re.fullmatch(rf"k[1-7]|{name}(\d+)", text)
        if not match or int(match[1] or 0) >= count:
            raise CodeError(f"{text} is no register of {self.isa}")
        return text


def check(code, lists, isa, dtype, ending):
    """Check that instructions compute what a program says, each operation once, and do nothing else."""
    values = Values()
    expected, kinds, touched = meaning(lists, ending, values)
    letter = "s" if dtype == "float32" else "d"
    follower = Follower(isa, letter, set(expected), touched, len(lists["scalars"]), values)
    try:
        follower.follow(code)
    except (IndexError, KeyError, ValueError) as error:
        raise CodeError(f"cannot be followed: {error!r}") from error
    if follower.stored != expected:
        raise CodeError("stores other values than those of the program")
    if follower.kinds != kinds:
        raise CodeError(f"has the instructions {follower.kinds}, expected {kinds}")


def check_codes(cases, isa, dtype, folder):
    """Check the code of programs, (rule, lists), with both endings; return which names and operands it has."""
    codes = [
        (_cpu.code_of(rule.id, isa, dtype, ending), lists, ending)
        for rule, lists in cases
        for ending in ("param", "update")
    ]
    seen = Counter()
    for (_, lists, ending), code in zip(codes, disassembled([code for code, *_ in codes], folder), strict=True):
        check(code, lists, isa, dtype, ending)
        for _, name, operands in code:
            seen.update([name, *operands])
    return seen
