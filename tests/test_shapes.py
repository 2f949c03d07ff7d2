"""Shapes written in signatures hold at run time (beartype through jaxtyping's import hook).

In a process of its own: the check costs more than the small models it watches.
"""

import subprocess
import sys

WATCHED = """
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
names = [f"gptoss_workbench.{n}" for n in "model layers kv_cache weights text sampling".split()]
install_import_hook(["gptoss_kernels", *names], "beartype.beartype")

from dataclasses import replace
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.model import GptOss

config = replace(TINY, num_hidden_layers=2, layer_types=alternating_layers(2))
tokens = torch.randint(3, 256, (2, 13))
mask = torch.ones(2, 13, dtype=torch.bool)
mask[0, :4] = False
for dtype in (torch.float32, torch.bfloat16):
    model = GptOss(config, random_tensors(config, 0), dtype=dtype)
    with model.hooks(bwd_hooks=[(lambda name: True, lambda grad, hook: None)]):
        model(tokens, attention_mask=mask, return_type="loss").backward()
    model.run_with_cache(tokens, names_filter=lambda name: True)
    model.generate(tokens, 2, attention_mask=mask)
    model.W_Q, model.W_O, model.b_V, model.W_U, model.accumulated_bias(1)
try:
    model.blocks[0].ln1(tokens.float()[0])
except Exception as error:
    print(type(error).__name__)
"""


def test_shapes_hold_and_a_wrong_one_is_caught():
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TypeCheckError" in done.stdout
