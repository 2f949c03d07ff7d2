"""`python -m gptoss_workbench.demo`: the first notebook without a notebook, as one page.

The embedded model reasons through a small program; the page shows its channels, its expert choices
and one head, and what it writes when it may not use the experts of its language.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptoss_workbench import load
from gptoss_workbench.views.page import trace_page

QUESTION = "Given E is 7. B is 1. G is B plus E. Find G?"
LAYER, ENGLISH = 2, [0, 1, 2, 3]
"""Where gpt-oss-nano keeps the experts of its languages, and those of English."""
HEAD = 0
PATTERNS = [f"blocks.{LAYER}.attn.hook_{point}" for point in ("pattern", "sink")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(prog="gptoss_workbench.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/first_trace.html"))
    path = first_trace(parser.parse_args(arguments).out)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB): open it in a browser")


def first_trace(path: str | Path) -> Path:
    """Ask, trace, ask again without the English experts, and write what was seen."""
    model = load()
    answer = _ask(model)
    with model.hooks(fwd_hooks=[(f"blocks.{LAYER}.mlp.hook_router_logits", ban_english)]):
        edited = _ask(model)
    trace = model.trace(answer.tokens, names_filter=PATTERNS, router_logits=True)
    told = {
        "question": QUESTION,
        "reasoning": answer.analysis.strip(),
        "answer": answer.final,
        f"without experts {ENGLISH[0]}–{ENGLISH[-1]} of layer {LAYER}": (
            f"{edited.analysis.strip()} → {edited.final}"
        ),
    }
    return trace_page(trace, path, title="First trace", told=told, layer=LAYER, head=HEAD)


def ban_english(logits: Any, hook: Any) -> Any:
    """Let no token go to the English experts."""
    logits[..., ENGLISH] = float("-inf")
    return logits


def _ask(model: Any) -> Any:
    return model.generate(messages=[{"role": "user", "content": QUESTION}], max_new_tokens=96)


if __name__ == "__main__":
    main()
