"""Function tools as the TypeScript namespace that gpt-oss was trained to read.

The text equals openai-harmony 0.0.8's, comment for comment:

    # Tools

    ## functions

    namespace functions {

    // Gets the weather
    type weather = (_: {
    // A city
    city: string,
    }) => any;

    } // namespace functions

For flat parameters the official chat template writes the same; it puts nested types on one line,
long item types as `any[]`, and a comma more behind a default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def tools_text(tools: Iterable[Mapping[str, Any]]) -> str:
    """Write tools, given as OpenAI-style dicts, as the "# Tools" section of a developer message."""
    return f"# Tools\n\n{namespace_text('functions', tools)}"


def namespace_text(name: str, tools: Iterable[Mapping[str, Any]], *, description: str = "") -> str:
    """Write one namespace; without tools it is its description alone."""
    declared = [_declaration(_definition(tool)) for tool in tools]
    mark = "// " if declared else ""
    out = f"## {name}\n\n" + "".join(f"{mark}{line}\n" for line in _lines(description))
    if not declared:
        return out.removesuffix("\n")
    return f"{out}namespace {name} {{\n\n{''.join(declared)}}} // namespace {name}"


def typescript(schema: Schema, indent: str = "") -> str:
    """Write a JSON schema as a TypeScript type."""
    variants = _variants(schema)
    if variants is not None:
        return "".join(f"\n{indent} | {_variant(v, indent, described=True)}" for v in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        return _union(kind) or "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        options = [f'"{v}"' for v in _list(schema.get("enum")) if isinstance(v, str)]
        return " | ".join(options) or "string"
    if kind == "array":
        items = schema.get("items")
        return "Array<any>" if items is None else f"{typescript(_schema(items), indent)}[]"
    return _PLAIN.get(str(kind), "any")


def _definition(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the function out of {"type": "function", "function": {...}}, or a bare definition."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError(
            'tools: expected {"type": "function", "function": {"name": ..., "description": ..., '
            f'"parameters": JSON schema}}}}, got {tool!r}'
        )
    return inner


def _declaration(tool: Mapping[str, Any]) -> str:
    comment = "".join(f"// {line}\n" for line in _lines(tool.get("description") or ""))
    parameters = tool.get("parameters")
    argument = "" if parameters is None else f"_: {typescript(_schema(parameters))}"
    return f"{comment}type {tool['name']} = ({argument}) => any;\n\n"


def _object(schema: Schema, indent: str) -> str:
    described = schema.get("description")
    comment = f"{indent}// {described}\n" if isinstance(described, str) else ""
    required = set(map(str, _list(schema.get("required"))))
    fields = schema.get("properties")
    fields = fields if isinstance(fields, Mapping) else {}
    body = "".join(
        _field(key if key in required else f"{key}?", _schema(value), indent)
        for key, value in fields.items()
    )
    return f"{comment}{{\n{body}{indent}}}"


def _field(name: str, schema: Schema, indent: str) -> str:
    """Write a property: its comments above, its type, its default behind."""
    variants = _variants(schema)
    comments = _comments(schema, indent, described=variants is None)
    if variants is not None:
        return comments + _choice(name, schema, variants, indent)
    kind = _nullable(schema, typescript(schema, indent + "    "))
    default = f" // {_default(schema)}" if "default" in schema else ""
    return f"{comments}{indent}{name}: {kind},{default}\n"


def _comments(schema: Schema, indent: str, *, described: bool) -> str:
    out = ""
    if isinstance(schema.get("title"), str):
        out += f"{indent}// {schema['title']}\n{indent}//\n"
    if described and isinstance(schema.get("description"), str):
        out += f"{indent}// {schema['description']}\n"
    examples = _list(schema.get("examples"))
    if examples:
        out += f"{indent}// Examples:\n"
        out += "".join(f'{indent}// - "{e}"\n' for e in examples if isinstance(e, str))
    return out


def _choice(name: str, schema: Schema, variants: list[Schema], indent: str) -> str:
    """Write a property whose type is one of several, each on its own line.

    The property's description stands above unless the first variant repeats it; a description that
    stands above is not written behind the variants again.
    """
    described = schema.get("description")
    first = variants[0].get("description") if variants else None
    above = isinstance(described, str) and described != first
    out = f"{indent}// {described}\n" if above else ""
    if "default" in schema:
        out += f"{indent}// {_default(schema)}\n"
    out += f"{indent}{name}:\n"
    for i, variant in enumerate(variants):
        shown = variant.get("description") != described and not (above and i == 0)
        out += f"{indent} | {_variant(variant, indent, described=shown, bare=True)}\n"
    return f"{out}{indent},\n"


def _variant(schema: Schema, indent: str, *, described: bool, bare: bool = False) -> str:
    """Write one variant, its description and default behind it."""
    notes = []
    if described and isinstance(schema.get("description"), str):
        notes.append(schema["description"])
    if "default" in schema:
        notes.append(_default(schema, bare=bare))
    tail = f" // {' '.join(notes)}" if notes else ""
    return _nullable(schema, typescript(schema, indent + "   ")) + tail


def _default(schema: Schema, *, bare: bool = True) -> str:
    """Write a default as JSON; an enum's default goes unquoted where `bare`."""
    value = schema["default"]
    if bare and isinstance(value, str) and _list(schema.get("enum")):
        return f"default: {value}"
    if isinstance(value, str) and not _list(schema.get("enum")):
        return f'default: "{value}"'
    return f"default: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"


def _nullable(schema: Schema, kind: str) -> str:
    return f"{kind} | null" if schema.get("nullable") is True and "null" not in kind else kind


def _union(kinds: list[Any]) -> str:
    names = [kind for kind in kinds if isinstance(kind, str)]
    return " | ".join("number" if name == "integer" else name for name in names)


def _variants(schema: Schema) -> list[Schema] | None:
    found = schema.get("oneOf")
    return [_schema(variant) for variant in found] if isinstance(found, list) else None


def _schema(value: Any) -> Schema:
    """Read a schema; anything that is not an object (JSON Schema allows `true`) says nothing."""
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _lines(text: str) -> list[str]:
    """Split at newlines alone, without a last empty line."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
