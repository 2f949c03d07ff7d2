"""PTX text of one kernel, taken apart: parameters, registers, instructions and labels."""

import re
from typing import NamedTuple

STATEMENT = re.compile(r"^(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
LABEL = re.compile(r"^([$\w]+):\s*")
WORD = re.compile(r"[%$A-Za-z_][\w$.]*")


class Instruction(NamedTuple):
    """One instruction, its operands as written."""

    opcode: str
    operands: tuple[str, ...] = ()
    guard: str | None = None
    """predicate register; lanes where it is false skip the instruction"""
    negated: bool = False
    """skip where the guard is true instead"""

    @property
    def words(self) -> tuple[str, ...]:
        """The opcode between its dots."""
        return tuple(self.opcode.split("."))


class Program(NamedTuple):
    """A kernel as the emulator runs it."""

    parameters: tuple[tuple[str, str], ...]
    """(type, name) in order"""
    registers: dict[str, str]
    """type of each register; "%r" stands for %r0, %r1, ..."""
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def kind(self, register: str) -> str:
        """The declared type of a register."""
        found = self.registers.get(register) or self.registers.get(register.rstrip("0123456789"))
        if found is None:
            raise NotImplementedError(f"PTX: {register} is no register declared here")
        return found


def parse(ptx: str) -> Program:
    """The only kernel of a PTX module."""
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", ptx), flags=re.S)
    text = re.sub(r"(?m)^\s*\.(loc|file)\b[^\n]*$", "", text)
    found = re.search(r"\.entry\s+[\w$]+\s*\((.*?)\)", text, re.S)
    if not found:
        raise ValueError("PTX: expected a module with one .entry")
    parameters = re.findall(r"\.param\s+\.(\w+)[^,]*?([\w$]+_param_\d+)", found[1])
    return _Parser(tuple(parameters)).run(_body(text[found.end() :]))


def _body(text: str) -> str:
    """What stands between the first brace and the one that closes it."""
    start, depth = text.index("{"), 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + 1 : start + brace.start()]
    raise ValueError("PTX: the kernel's braces do not close")


class _Parser:
    """Statements in order; names declared in an inner scope (inline assembly) are made unique."""

    def __init__(self, parameters: tuple[tuple[str, str], ...]) -> None:
        self.parameters = parameters
        self.registers: dict[str, str] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.scopes: list[dict[str, str]] = []
        self.opened = 0

    def run(self, body: str) -> Program:
        for text in body.split(";"):
            self._statement(" ".join(text.split()))
        return Program(self.parameters, self.registers, tuple(self.instructions), self.labels)

    def _statement(self, text: str) -> None:
        while text:
            if text[0] == "{":
                self.opened += 1
                self.scopes.append({})
                text = text[1:].strip()
            elif text[0] == "}":
                self.scopes.pop()
                text = text[1:].strip()
            elif found := LABEL.match(text):
                self.labels[self._renamed(found[1])] = len(self.instructions)
                text = text[found.end() :]
            else:
                break
        if text.startswith(".reg"):
            self._declare(text)
        elif text and not text.startswith((".reqntid", ".maxntid", ".pragma")):
            self._instruction(text)

    def _declare(self, text: str) -> None:
        kind, names = text.removeprefix(".reg").strip().removeprefix(".").split(None, 1)
        for name in names.split(","):
            name = name.strip()
            family = re.match(r"^([%\w]+)<(\d+)>$", name)
            if family and not self.scopes:
                self.registers[family[1]] = kind
                continue
            for each in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]:
                unique = f"{each}@{self.opened}" if self.scopes else each
                self.registers[unique] = kind
                if self.scopes:
                    self.scopes[-1][each] = unique

    def _instruction(self, text: str) -> None:
        found = STATEMENT.match(text)
        if not found:
            raise NotImplementedError(f"PTX: cannot read {text!r}")
        bang, guard, opcode, rest = found.groups()
        operands = tuple(self._renamed(each.strip()) for each in OPERAND.findall(rest))
        guard = self._renamed(guard) if guard else None
        self.instructions.append(Instruction(opcode, operands, guard, bool(bang)))

    def _renamed(self, text: str) -> str:
        if not self.scopes:
            return text
        names = {old: new for scope in self.scopes for old, new in scope.items()}
        return WORD.sub(lambda word: names.get(word[0], word[0]), text)
