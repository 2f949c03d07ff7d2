"""The command line: what it prints, what it writes, and how it fails."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from typer.testing import CliRunner

import gptoss_workbench
from gptoss_kernels.backend import available
from gptoss_workbench import demo
from gptoss_workbench.cli import app, spoken
from gptoss_workbench.nano import checkpoint_path

QUESTION = "Given E is 7. B is 1. G is B plus E. Find G?"


@pytest.fixture
def gptoss():
    return lambda *words: CliRunner().invoke(app, list(words))


def test_importing_the_command_line_does_not_import_torch():
    code = "import gptoss_workbench.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_info_describes_the_embedded_model(gptoss):
    out = gptoss("info")
    assert out.exit_code == 0 and "16 experts" in out.stdout
    told = json.loads(gptoss("info", "--json").stdout)
    assert told["config"]["num_local_experts"] == 16 and told["complete"]


def test_info_plans_memory_for_a_device(gptoss):
    out = gptoss("info", "--memory", "--context", "256", "--device", "16GB")
    assert out.exit_code == 0 and "hold a context of 512 tokens" in out.stdout
    told = json.loads(gptoss("info", "--memory", "--json").stdout)
    assert told["columns"]["context"] == [512] and "fits" not in told["columns"]


def test_generate_writes_reasoning_and_answer_by_channel(gptoss):
    out = gptoss("generate", QUESTION, "--max-new-tokens", "96")
    assert out.exit_code == 0
    reasoning, answer = out.stdout.split("[final]")
    assert reasoning.startswith("[analysis]\nSteps:") and answer.strip() == "8"
    assert "<|" not in out.stdout


def test_an_answer_that_is_cut_off_says_so(gptoss):
    out = gptoss("generate", QUESTION, "--max-new-tokens", "9")
    assert out.exit_code == 0 and out.stdout.startswith("[analysis]")
    assert out.stderr == "gptoss: cut off after 9 tokens; raise --max-new-tokens\n"


def test_a_model_is_opened_as_the_options_say(gptoss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = []
    load = gptoss_workbench.load

    def watched(*given, **options):
        opened.append(load(*given, **options))
        return opened[-1]

    monkeypatch.setattr(gptoss_workbench, "load", watched)
    for command in (["generate", QUESTION], ["trace", QUESTION, "--no-generate"]):
        options = ["--dtype", "float32", "--backend", "reference", "--device", "cpu"]
        assert gptoss(*command, *options).exit_code == 0
    made = {(model.activation_dtype, model.backend, model.cfg.device.type) for model in opened}
    assert len(opened) == 2 and made == {(torch.float32, "reference", "cpu")}


def test_the_version_is_the_package_s(gptoss):
    assert gptoss("--version").stdout == f"gptoss-workbench {version('gptoss-workbench')}\n"


def test_a_broken_checkpoint_is_described_and_fails(gptoss, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint_path(), broken)
    for shard in broken.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-100])
    out = gptoss("info", str(broken))
    assert out.exit_code == 1 and "not loadable" in out.stdout
    assert json.loads(gptoss("info", str(broken), "--json").stdout)["complete"] is False


def test_memory_is_stated_for_no_more_than_the_context(gptoss):
    assert "at 512 tokens in bfloat16" in gptoss("info").stdout


@pytest.mark.skipif("native" not in available(), reason="no native kernels; see `gptoss doctor`")
def test_doctor_tells_of_an_instruction_set_that_is_not_here():
    environment = os.environ | {"GPTOSS_NATIVE_ISA": "foo"}
    command = [sys.executable, "-m", "gptoss_workbench.cli", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "GPTOSS_NATIVE_ISA=foo cannot run here" in done.stdout


def test_trace_writes_a_page_of_a_prompt_without_an_answer(gptoss, tmp_path):
    page = tmp_path / "new" / "page.html"
    out = gptoss("trace", QUESTION, "--out", str(page), "--no-generate", "--layer", "0")
    assert out.exit_code == 0 and out.stdout.startswith(str(page))
    text = page.read_text()
    assert text.count('<div class="gptoss-view"') == 3 and "Attention of layer 0 head 0" in text


def test_the_demo_shows_the_answer_with_and_without_the_english_experts(tmp_path):
    text = demo.first_trace(tmp_path / "first_trace.html").read_text()
    assert "<dt>answer</dt><dd>8</dd>" in text and "without experts 0–3 of layer 2" in text
    assert len(text) < 2_000_000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["info", "/no/such/folder"], "/no/such/folder"),
        (["info", "--memory", "--device", "big"], "as 16GB or 80GiB; got 'big'"),
        (["info", "--memory", "--precision", "int8"], "expected bfloat16 or float32; got int8"),
        (["info", "--memory", "--context", "9000"], "contexts are 1 to 512 tokens"),
        (["info", "--context", "256"], "--context: only with --memory"),
        (["info", "--device", "16GB", "--gpu"], "--device, --gpu: only with --memory"),
        (["generate", "Hi", "--seed", "3"], "--seed: only with a --temperature above 0"),
        (["generate", "Hi", "--device", "cuda:63"], "device='cuda:63' cannot be used"),
        (["trace", "Hi", "--dtype", "int8"], "dtype torch.int8 is not supported: use bfloat16"),
        (["trace", "Hi", "--backend", "fast"], "choose one of native, triton, reference"),
        (["generate", " "], "the prompt is empty"),
        (["generate", "Hi", "--effort", "huge"], "expected low, medium, high; got huge"),
        (["generate", "Hi", "--model", "/no/such/folder"], "/no/such/folder"),
        (["trace", "Hi", "--layer", "9"], "the model has layers 0 to 3; got 9"),
        (["trace", "Hi", "--no-generate", "--head", "99"], "heads are 0 to 7; got 99"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(gptoss, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    out = gptoss(*words)
    assert out.exit_code == 2 and told in out.stderr
    assert out.stderr.startswith("gptoss: ") and out.stderr.count("\n") == 1


def test_doctor_finds_the_embedded_model_running(gptoss):
    out = gptoss("doctor")
    assert out.exit_code == 0
    assert any("gpt-oss-nano" in row and "runs" in row for row in out.stdout.splitlines())


def test_markers_become_channel_names():
    pieces = [
        "<|channel|>", "analysis", "<|message|>", "Steps:", " A", "<|end|>",
        "<|start|>", "assistant", " to", "=f", "<|channel|>", "commentary", "<|message|>", "{}",
        "<|call|>",
    ]  # fmt: skip
    said = "".join(spoken(pieces))
    assert said == "[analysis]\nSteps: A\n[to=f commentary]\n{}"
