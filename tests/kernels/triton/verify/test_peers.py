"""Others' kernels beside ours: what is kept, how it is shown, and what their failures become."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
WHEELS = ROOT / ".oracle"
MEASURED = """
import json
import devices, peers, probe, torch
from peer_calls import OPENAI, Call
from gptoss_kernels.triton.launch import launch

def spills():
    x, y = torch.empty(128, 512, dtype=torch.bfloat16), torch.empty(128, 128)
    launch(probe.spilling, (1,), x, x, y, 512, SIZE=128, num_warps=1)

def broken():
    raise RuntimeError("outer") from ValueError("why it cannot be")

def assembler():
    raise RuntimeError("ptxas a.ptx, line 3; error   : Feature 'x' not supported\\nline 4; fatal")

print(json.dumps([
    peers.measured(Call("a case", OPENAI, ("another",), spills), "sm_80", "nobody 1")._asdict(),
    peers.measured(Call("a case", OPENAI, ("another",), broken), "sm_80", "nobody 1")._asdict(),
    peers.measured(Call("a case", OPENAI, ("another",), assembler), "sm_80", "nobody 1")._asdict(),
]))
"""
SHOWN = """
import json
import devices, gate, report
from case import collect
from peers import kept

found = kept()
verdicts = [gate.Verdict(case.name, target, [], loop=7, share=0.5) for case in collect()
            for target in devices.GATED]
pairs = [(peer.case, peer.target) for peer in found]
print(json.dumps({"rows": report.peer_rows(verdicts, found), "kept": found,
                  "twice": len(pairs) - len(set(pairs)), "targets": devices.GATED}))
"""
AGAIN = """
import json, sys
from pathlib import Path
import peer_calls, peers

with peers.unpacked(Path(sys.argv[1]), [peer_calls.OPENAI]) as sources:
    call = next(each for each in peer_calls.CALLS if each.whose == peer_calls.OPENAI)
    found = peers.measured(call, "sm_90", sources[call.whose])
same = next(each for each in peers.kept() if each[:2] == found[:2] and each.target == "sm_90")
print(json.dumps([found, same]))
"""


@pytest.fixture(scope="module")
def shown(compiling) -> dict:
    done = compiling("-c", SHOWN)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_others_refuse_is_noted(compiling):
    done = compiling("-c", MEASURED)
    assert done.returncode == 0, done.stderr
    another, broken, assembler = json.loads(done.stdout)
    assert another["note"] == "starts spilling"
    assert broken["note"] == "does not compile: ValueError: why it cannot be"
    assert assembler["note"] == "does not compile: Feature 'x' not supported"
    assert {each["registers"] for each in (another, broken, assembler)} == {""}


def test_each_kernel_of_others_stands_above_ours(shown):
    rows, kept = shown["rows"], shown["kept"]
    assert len(rows) == 2 * len(kept) and kept
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert theirs[:2] == ours[:2] and (theirs[2] != "ours", ours[2]) == (True, "ours")
        assert ours[10] == 7  # the loop that the verdict has


def test_kept_figures_say_where_they_come_from(shown):
    assert shown["twice"] == 0
    assert {each[4] for each in shown["kept"]} == set(shown["targets"])
    for each in shown["kept"]:
        compiles = not each[18].startswith("does not compile")
        assert bool(each[8]) == compiles  # registers
        assert each[2].endswith(")") and each[3]  # the wheel's digest, Triton's version


def test_a_folder_without_their_packages_is_refused(compiling, tmp_path, verify):
    done = compiling(Path(verify("case").__file__).with_name("peers.py"), tmp_path)
    assert done.returncode != 0 and "no gpt_oss-*.whl" in done.stderr


@pytest.mark.oracle
def test_openais_attention_is_still_what_was_kept(compiling):
    done = compiling("-c", AGAIN, WHEELS)
    assert done.returncode == 0, done.stderr
    found, kept = json.loads(done.stdout)
    assert found == kept
