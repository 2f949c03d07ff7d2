"""The house: imports only point down, tests are no package, axis names come from the glossary."""

import ast
from pathlib import Path

import pytest

from gptoss_hooks.axes import GLOSSARY

ROOT = Path(__file__).parents[1]
LAYERS = {"kernels": "gptoss_kernels", "hooks": "gptoss_hooks", "workbench": "gptoss_workbench"}
SOURCES = [
    p for folder, name in LAYERS.items() for p in sorted((ROOT / folder / name).rglob("*.py"))
]
BRIDGES = ("transformers", "transformer_lens", "nnsight", "sae_lens")
MEASURES = {"nano/evaluate.py"}
"""Scripts that compare with those libraries; nothing imports them."""
KERNEL_AXES = set(
    "rows row inner outer block gate_up half tokens token slot tile".split()
    + "chosen touched place term word".split()
)
"""Axes that exist inside one operation: any leading rows, a packed block, half a head."""
SHAPED = {"Float", "Int", "Bool", "UInt8", "Integer", "Num", "Shaped"}


def imported(path):
    """(module, line) of every import, those under TYPE_CHECKING and inside functions included."""
    package = path.parent.relative_to(ROOT).parts[1:]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module, node.lineno


def layer(module):
    names = list(LAYERS.values())
    top = module.split(".")[0]
    return names.index(top) if top in names else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_point_down(path):
    own = list(LAYERS).index(path.relative_to(ROOT).parts[0])
    up = [
        (m, line) for m, line in imported(path) if (found := layer(m)) is not None and found > own
    ]
    assert not up


def test_only_bridges_import_the_libraries_they_bridge_to():
    core = [p for p in SOURCES if "bridge" not in str(p) and not str(p).endswith(tuple(MEASURES))]
    found = [
        (str(path.relative_to(ROOT)), line)
        for path in core
        for module, line in imported(path)
        if module.split(".")[0] in BRIDGES
    ]
    assert not found


def test_no_init_file_turns_a_folder_into_a_package_that_shadows_another():
    roots = [ROOT / folder / "__init__.py" for folder in LAYERS]
    assert not [p for p in [*roots, *(ROOT / "tests").rglob("__init__.py")] if p.exists()]


def shapes(path):
    """(axis, line) of every jaxtyping shape string."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_shape = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
        if not is_shape or node.value.id not in SHAPED or not isinstance(node.slice, ast.Tuple):
            continue
        for axis in ast.literal_eval(node.slice.elts[-1]).split():
            yield axis.lstrip("*"), node.lineno


def test_axis_names_come_from_the_glossary():
    known = GLOSSARY.keys() | KERNEL_AXES
    strange = [
        (str(path.relative_to(ROOT)), line, axis)
        for path in SOURCES
        for axis, line in shapes(path)
        if axis not in known and not axis.isdigit() and axis != "..."
    ]
    assert not strange


def test_hook_points_use_glossary_names(tiny):
    assert {axis for row in tiny.hook_points() for axis in row.shape.split()} <= GLOSSARY.keys()
