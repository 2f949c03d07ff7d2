"""What the README shows is what happens."""

import re
from pathlib import Path

import torch

from gptoss_hooks.edits import ban

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_its_python_runs_and_the_edit_has_an_effect():
    first, second, third = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in first.splitlines() if line.strip()]) <= 12
    names: dict = {}
    exec(first, names)
    answer, trace = names["answer"], names["trace"]
    assert answer.final == "8"
    assert "G 8" in answer.analysis
    assert trace.routing.experts.shape[-1] == 4
    exec(second, names)
    model = names["model"]
    with torch.no_grad():
        plain = model(answer.tokens)
        silenced = model.run_with_hooks(
            answer.tokens, fwd_hooks=[("blocks.2.mlp.hook_expert_out", names["silence"])]
        )
    assert (plain - silenced).abs().max() > 0.1
    exec(third, names)
    assert names["routing"].n_prompts == 8 and names["thinking"] == eval(
        repr(names["thinking"]), {"ban": ban}
    )


def test_every_file_it_links_to_exists():
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []


def test_every_hook_name_it_gives_exists(nano):
    table = README.split("| stage |")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        cells = re.findall(r"`([^`]+)`", row.rsplit("|", 2)[1])
        place = ""
        for name in cells:
            if not name.startswith(("hook_", "attn.", "mlp.", "ln1.", "ln_final.", "unembed.")):
                continue
            if "." in name and not name.startswith(("ln_final.", "unembed.")):
                place = name.rsplit(".", 1)[0] + "."
            short = name if "." in name else place + name
            candidates = (short, f"blocks.0.{short}", name, f"blocks.0.{name}")
            assert any(each in nano.hook_dict for each in candidates), name
