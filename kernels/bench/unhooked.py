"""The model's own source without its hook points, to be compared with what it costs to have them.

A call of a hook point becomes its argument, no point is observed, and no kernel gets a tap; the
rest is the same code. Built from the source as it stands, so it cannot fall behind.
"""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

BLOCKS = tuple(f"gptoss_workbench.{name}" for name in ("parts", "expert_layer", "layers"))
"""Modules that the model is made of, each after those that it imports."""
MODEL = "gptoss_workbench.model"


class Unhooked(ast.NodeTransformer):
    """Takes hook points out of a syntax tree; `taken` counts them."""

    taken = 0

    def visit_Call(self, node: ast.Call) -> ast.expr:
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Starred) and _looks(first.value):  # Tap(*looks(...))
            self.taken += 1
            return ast.Call(node.func, [], [])
        if _looks(node):  # one, two = looks(self.hook_one, self.hook_two)
            self.taken += len(node.args)
            return ast.Tuple([ast.Constant(None) for _ in node.args], ast.Load())
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("hook_"):
            self.taken += 1
            return node.args[0]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        return ast.Constant(False) if node.attr == "observed" else node


def _looks(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "looks"


def unhooked_model() -> type:
    """The class of models without hook points; it is made as `GptOss` is."""
    with patch.dict(sys.modules):
        for name in BLOCKS:
            sys.modules[name] = _without_hooks(name)
        return _without_hooks(MODEL).GptOss


def _without_hooks(name: str) -> ModuleType:
    found = find_spec(name)
    assert found and found.origin
    taker = Unhooked()
    tree = taker.visit(ast.parse(Path(found.origin).read_text()))
    if not taker.taken:
        raise SystemExit(f"{name}: no hook point was found to be taken out")
    module = ModuleType(f"{name}_unhooked")
    exec(compile(ast.fix_missing_locations(tree), found.origin, "exec"), module.__dict__)
    return module
