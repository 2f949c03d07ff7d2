"""Straight-line programs modulo 10: the causal ground truth under a chain of thought.

A program is a list of definitions, each of which uses earlier names only:

    E is 7.  B is 1.  G is B plus E.  K is E times 3.        values: E 7, B 1, G 8, K 1  (mod 10)

`parents` are the operands of a definition, `ancestors` everything a value depends on, and
`recompute` gives the values when some of them are forced: the right answer to an intervention.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

NAMES = tuple("ABCDEFGHJK")
"""Ten variable names; X is never defined (asking for it is refused)."""


class Definition(NamedTuple):
    """One line: `name = left op right (mod 10)`."""

    name: str
    op: str
    """"const", "lookup" (a constant that only the tool knows), "plus", "minus" or "times"."""
    left: str | int
    """A name, or the digit of a constant."""
    right: str | int | None = None
    """A name, a digit, or None for a constant."""

    @property
    def parents(self) -> tuple[str, ...]:
        """The variables it is computed from."""
        return tuple(x for x in (self.left, self.right) if isinstance(x, str))

    @property
    def computed(self) -> bool:
        """Whether the value has to be worked out (a constant's is only copied)."""
        return bool(self.parents)


def random_program(rng: Random, n: int) -> tuple[Definition, ...]:
    """Draw n definitions; the first is a constant, the second one half of the time."""
    names = rng.sample(NAMES, n)
    defs: list[Definition] = []
    for i, name in enumerate(names):
        if i == 0 or (i == 1 and rng.random() < 0.5):
            defs.append(Definition(name, "const", rng.randrange(10)))
        else:
            defs.append(random_step(rng, name, names[:i]))
    return tuple(defs)


def random_step(rng: Random, name: str, earlier: Sequence[str]) -> Definition:
    """40 % sum or difference of two variables, 30 % product, 30 % sum with a digit."""
    kind, left = rng.random(), rng.choice(earlier)
    if kind < 0.4 and len(earlier) > 1:
        right = rng.choice([x for x in earlier if x != left])
        return Definition(name, rng.choice(("plus", "minus")), left, right)
    if kind < 0.7:
        return Definition(name, "times", left, rng.choice((3, 7, 9)))
    return Definition(name, rng.choice(("plus", "minus")), left, rng.randrange(1, 10))


def recompute(
    defs: Sequence[Definition], override: Mapping[str, int] | None = None
) -> dict[str, int]:
    """All values, with those in `override` forced: the counterfactual ground truth.

    >>> program = (Definition("E", "const", 7), Definition("G", "times", "E", 3))
    >>> recompute(program), recompute(program, {"E": 2})
    ({'E': 7, 'G': 1}, {'E': 2, 'G': 6})
    """
    forced, values = override or {}, {}
    for d in defs:
        values[d.name] = forced[d.name] if d.name in forced else value_of(d, values)
    return values


def value_of(d: Definition, values: Mapping[str, int]) -> int:
    """The value of one definition, from those of its operands."""
    left = values[d.left] if isinstance(d.left, str) else d.left
    if d.right is None:
        return left
    right = values[d.right] if isinstance(d.right, str) else d.right
    return {"plus": left + right, "minus": left - right, "times": left * right}[d.op] % 10


def ancestors(defs: Sequence[Definition], query: str) -> frozenset[str]:
    """Every variable the query's value depends on, itself included."""
    by_name, found, todo = {d.name: d for d in defs}, set(), [query]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += by_name[name].parents
    return frozenset(found)


def depth(defs: Sequence[Definition], query: str) -> int:
    """Length of the longest chain of computed steps that ends in the query (a constant has 0)."""
    d = next(d for d in defs if d.name == query)
    return 1 + max(depth(defs, p) for p in d.parents) if d.computed else 0
