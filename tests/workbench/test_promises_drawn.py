"""Promises 1 and 2 over drawn batches: observers, company, padding, chunks, threads; bit for bit.

On every backend with a fixed order of summation; the reference is held to its tolerance elsewhere.
"""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_kernels.backend import available
from gptoss_workbench.config import alternating_layers

EXACT = [name for name in available("cpu") if name != "reference"]
LONGEST = 140
"""More tokens than 128, so that tiles and the released window are crossed."""
POINTS = ("resid_post", "pattern", "attn_scores", "router_logits", "expert_gate", "expert_out")


class Run(NamedTuple):
    """One way of running some rows."""

    lengths: list[int]
    side: str
    chunk: int
    threads: int
    observed: frozenset[str]
    seed: int


runs = st.builds(
    Run,
    st.lists(st.integers(1, LONGEST), min_size=1, max_size=7),
    st.sampled_from(["left", "right"]),
    st.integers(1, 129),
    st.integers(1, 2),
    st.frozensets(st.sampled_from(POINTS)),
    st.integers(0, 999),
)


def padded(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens [batch, pos] and the mask of the real ones."""
    longest = max(run.lengths)
    drawn = torch.Generator().manual_seed(run.seed)
    tokens = torch.randint(3, 256, (len(run.lengths), longest), generator=drawn)
    place = torch.arange(longest)
    length = torch.tensor(run.lengths)[:, None]
    return tokens, place >= longest - length if run.side == "left" else place < length


def in_chunks(model, tokens, mask, run: Run) -> torch.Tensor:
    """Logits of a prompt that is fed piece by piece, some points observed, on some threads."""
    cache, before = model.new_cache(), torch.get_num_threads()
    names = [name for name in model.hook_dict if name.endswith(tuple(run.observed))]
    pieces = zip(tokens.split(run.chunk, 1), mask.split(run.chunk, 1), strict=True)
    torch.set_num_threads(run.threads)
    try:
        with model.hooks([(name, lambda x, hook: None) for name in names if run.observed]):
            parts = [model(t, attention_mask=m, past_key_values=cache) for t, m in pieces]
    finally:
        torch.set_num_threads(before)
    return torch.cat(parts, 1)


@pytest.mark.skipif(not EXACT, reason="only the reference backend is here; see `gptoss doctor`")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", EXACT)
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(run=runs)
def test_a_row_gives_the_same_bits_however_it_is_run(make_model, name, dtype, run):
    model = make_model(dtype, name, num_hidden_layers=2, layer_types=alternating_layers(2))
    tokens, mask = padded(run)
    with torch.no_grad():
        logits = in_chunks(model, tokens, mask, run)
        for row in range(len(run.lengths)):
            alone = model(tokens[row, mask[row]][None])[0]
            assert torch.equal(logits[row, mask[row]], alone)
