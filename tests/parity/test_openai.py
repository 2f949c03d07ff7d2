"""The model gives what OpenAI's own torch reference gives, both from one `original/` folder."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.checkpoint.synthetic import write_original
from gptoss_workbench.config import alternating_layers

pytestmark = pytest.mark.oracle
FOLDER = Path(__file__).parents[2] / ".oracle"
CASES = range(12)


@pytest.fixture(scope="module")
def reference():
    """OpenAI's Transformer class, from where tests/oracle/fetch.py puts it."""
    if not (FOLDER / "gpt_oss" / "torch" / "model.py").exists():
        missing = f"{FOLDER} lacks OpenAI's reference: run `python tests/oracle/fetch.py` first"
        if os.environ.get("GPTOSS_REQUIRE_ORACLE") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    sys.path.insert(0, str(FOLDER))
    try:
        from gpt_oss.torch.model import Transformer
    finally:
        sys.path.remove(str(FOLDER))
    return Transformer


def accepted_case(oracle, seed: int):
    """A case the reference takes: it fixes eps, the layer pattern and an unrounded YaRN range."""
    drawn = oracle.random_config(seed)
    layers = 2 + seed % 3
    config = replace(
        drawn,
        num_hidden_layers=layers,
        layer_types=alternating_layers(layers),
        rms_norm_eps=1e-5,
        rope_scaling=replace(
            drawn.rope_scaling, original_max_position_embeddings=(1024, 4096)[seed % 2]
        ),
    )
    case = oracle.random_case(seed, config, gentle=seed % 4 != 3)
    return case._replace(config=config, tokens=case.tokens[:1], mask=case.mask[:1])


def ask(oracle, reference, folder: Path, tokens, dtype=torch.float32):
    """The reference's logits and choice of experts for one sequence."""
    model = reference.from_checkpoint(str(folder), device="cpu")
    model = model.float() if dtype == torch.float32 else model
    seen = []
    for block in model.block:
        block.mlp.gate.register_forward_hook(lambda gate, inputs, output: seen.append(output))
    with torch.inference_mode():
        logits = model(tokens[0]).float()[None]
    k = model.block[0].mlp.experts_per_token
    ranked = torch.stack(seen)[:, None].float().sort(-1, descending=True)
    clear = ranked.values.diff(dim=-1).neg()
    margin = clear[..., k - 1] if k < ranked.values.shape[-1] else torch.ones(logits.shape[:2])
    return oracle.Run(logits, ranked.indices[..., :k].sort(-1).values, margin)


@pytest.mark.parametrize("seed", CASES)
def test_float32_equals_the_reference(oracle, reference, tmp_path, seed):
    case = accepted_case(oracle, seed)
    folder = tmp_path / "original"
    write_original(case.tensors, case.config, folder)
    expected = ask(oracle, reference, folder, case.tokens)
    model = wb.load(folder, dtype=torch.float32)
    found = oracle.gap(oracle.our_run(model, case.tokens), expected)
    print(f"seed {seed}, {case.tokens.shape[1]} tokens: {found}")
    assert case.tokens.shape[1] > 128
    assert found.parity, found


def test_bfloat16_is_no_worse_than_the_reference(oracle, reference, tmp_path):
    """Relative L2 to the float32 reference, averaged over draws: one flipped expert is much."""
    errors = {"ours": 0.0, "theirs": 0.0}
    for seed in (0, 1, 2, 4, 5, 6):
        case = accepted_case(oracle, seed)
        folder = tmp_path / str(seed)
        write_original(case.tensors, case.config, folder)
        exact = ask(oracle, reference, folder, case.tokens).logits
        theirs = ask(oracle, reference, folder, case.tokens, torch.bfloat16).logits
        ours = oracle.our_run(wb.load(folder), case.tokens).logits
        for name, logits in (("ours", ours), ("theirs", theirs)):
            errors[name] += float((logits - exact).norm() / exact.norm()) / 6
    print(errors)
    assert errors["ours"] <= 1.2 * errors["theirs"]
