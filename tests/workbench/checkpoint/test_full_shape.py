"""Released sizes on disk: a cut of two layers (tests/full runs all 24)."""

import subprocess
import sys
from dataclasses import replace

import pytest

from gptoss_workbench.checkpoint import checkpoint_info
from gptoss_workbench.checkpoint.synthetic import write_random
from gptoss_workbench.config import GPT_OSS_20B, alternating_layers

OPEN = """
import sys
from gptoss_workbench.checkpoint import open_checkpoint

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

open_checkpoint().tensors()
before = anonymous()
checkpoint = open_checkpoint(sys.argv[1])
tensors = checkpoint.tensors()
checkpoint.fingerprint()
print(anonymous() - before, len(tensors))
"""


@pytest.mark.full
def test_opening_takes_no_memory_of_its_own(tmp_path):
    layers = 2
    types = alternating_layers(layers)
    config = replace(GPT_OSS_20B, num_hidden_layers=layers, layer_types=types)
    files = list(write_random(config, tmp_path))
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    anonymous, count = map(int, out.split())
    assert anonymous < 30e6
    assert count == 3 + 19 * layers
    info = checkpoint_info(tmp_path)
    assert info.complete
    assert len(info.shards) == len(files) == 2
    for file in files:  # pytest keeps its last three folders
        file.unlink()
