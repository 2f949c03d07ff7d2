"""The two tools gpt-oss was trained with, declared in the system message word for word.

The model calls them in the analysis channel (` to=browser.search code`, ` to=python code`); running
them is the caller's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_workbench.harmony.tools import namespace_text

_PAGE: dict[str, Any] = {"type": "number", "default": -1}
_TEXT: dict[str, Any] = {"type": "string"}

BROWSER = """\
Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
Cite information from the tool using the following format:
`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources=web (default: web)"""

BROWSER_TOOLS = (
    {
        "name": "search",
        "description": "Searches for information related to `query` and displays `topn` results.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": _TEXT,
                "topn": {"type": "number", "default": 10},
                "source": _TEXT,
            },
            "required": ["query"],
        },
    },
    {
        "name": "open",
        "description": (
            "Opens the link `id` from the page indicated by `cursor` starting at line number "
            "`loc`, showing `num_lines` lines.\n"
            "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
            "If `cursor` is not provided, the most recent page is implied.\n"
            "If `id` is a string, it is treated as a fully qualified URL associated with "
            "`source`.\n"
            "If `loc` is not provided, the viewport will be positioned at the beginning of the "
            "document or centered on the most relevant passage, if available.\n"
            "Use this function without `id` to scroll to a new location of an opened page."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "id": {"type": ["number", "string"], "default": -1},
                "cursor": _PAGE,
                "loc": _PAGE,
                "num_lines": _PAGE,
                "view_source": {"type": "boolean", "default": False},
                "source": _TEXT,
            },
        },
    },
    {
        "name": "find",
        "description": (
            "Finds exact matches of `pattern` in the current page, or the page given by `cursor`."
        ),
        "parameters": {
            "type": "object",
            "properties": {"pattern": _TEXT, "cursor": _PAGE},
            "required": ["pattern"],
        },
    },
)

PYTHON = (
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to "
    "the user. This tool should be used for internal reasoning, but not for code that is intended "
    "to be visible to the user (e.g. when creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful "
    "Jupyter notebook environment. python will respond with the output of the execution or time "
    "out after 120.0 seconds. The drive at '/mnt/data' can be used to save and persist user files. "
    "Internet access for this session is UNKNOWN. Depends on the cluster."
)

NAMES = ("browser", "python")


def builtin_text(names: Sequence[str]) -> str:
    """Write the "# Tools" section of the system message for some of NAMES."""
    if isinstance(names, str) or not set(names) <= set(NAMES):
        raise ValueError(f"render: expected builtin_tools such as {NAMES}, got {names!r}")
    sections = ["# Tools"]
    if "browser" in names:
        sections.append(namespace_text("browser", BROWSER_TOOLS, description=BROWSER))
    if "python" in names:
        sections.append(namespace_text("python", (), description=PYTHON))
    return "\n\n".join(sections)
