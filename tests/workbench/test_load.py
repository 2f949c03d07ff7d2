"""`load`, and what importing the package costs."""

import subprocess
import sys

import pytest
import torch

import gptoss_workbench
from gptoss_workbench import CheckpointError, load
from gptoss_workbench.nano import checkpoint_path


def test_without_arguments_it_is_the_embedded_model(nano):
    assert nano.name == "gpt-oss-nano" and nano.activation_dtype == torch.bfloat16
    assert nano.tokenizer is not None and nano.fingerprint


def test_a_folder_gives_the_same_model(nano):
    again = load(checkpoint_path(), dtype=torch.float32, backend="reference")
    assert again.fingerprint == nano.fingerprint and again.activation_dtype == torch.float32
    assert again.name == checkpoint_path().name


def test_experts_stay_packed_and_mapped(nano):
    experts = [p for name, p in nano.named_parameters() if name.endswith(("blocks", "scales"))]
    assert experts and all(p.dtype == torch.uint8 for p in experts)


def test_a_missing_folder_is_one_clear_message(tmp_path):
    with pytest.raises(CheckpointError, match="absent"):
        load(tmp_path / "absent")


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="use bfloat16 or float32"):
        load(checkpoint_path(), dtype=torch.float16)


def test_importing_is_light():
    """Heavy libraries wait until they are used; under a second of CPU, printed."""
    code = """
import sys, time, torch
start, before = time.process_time(), set(sys.modules)
import gptoss_workbench
print(f"{time.process_time() - start:.2f} s beside torch")
gptoss_workbench.load
print(f"{time.process_time() - start:.2f} s with the model")
heavy = "transformers transformer_lens nnsight sae_lens pandas plotly matplotlib anywidget"
heavy += " ipywidgets tokenizers openai_harmony"
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded & set(heavy.split())))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *times, heavy = done.stdout.splitlines()
    print(*times, sep="\n")
    assert heavy == "[]"
    assert float(times[0].split()[0]) < 1.0


def test_the_public_names_are_all_there():
    assert dir(gptoss_workbench) == sorted(gptoss_workbench.__all__)
    for name in gptoss_workbench.__all__:
        assert getattr(gptoss_workbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        gptoss_workbench.absent  # noqa: B018
