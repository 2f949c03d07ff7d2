"""A trace made by hand: a short conversation, two rows, routing and attention with known places."""

import base64
import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gptoss_workbench.harmony import SentenceSpan, Spans, TokenLabel

LAYERS, EXPERTS, K, HEADS, WINDOW = 4, 16, 4, 8, 8

MESSAGES = [
    ("system", None, "Reasoning: medium"),
    ("user", None, "Given E is 7. B is 1. G is B plus E.\nFind <b>G</b>?"),
    ("assistant", "analysis", "Steps: E is 7 so E 7. B is 1 so B 1. G is B 1 plus E 7 so G 8."),
    ("assistant", "final", "8"),
]


def words(text):
    return [w if i == 0 else f" {w}" for i, w in enumerate(text.split(" "))]


def message_tokens(number, role, channel, text):
    """Give (text, label) for one message; a sentence ends behind a full stop."""
    head = ["<|start|>", role, *(["<|channel|>", channel] if channel else []), "<|message|>"]
    parts = ["marker" if t.startswith("<|") else "header" for t in head]
    out = [
        (t, TokenLabel(role, channel, None, part, number, -1))
        for t, part in zip(head, parts, strict=True)
    ]
    sentence = 10 * number
    for piece in words(text):
        out.append((piece, TokenLabel(role, channel, None, "body", number, sentence)))
        sentence += piece.endswith(".")
    closing = "<|return|>" if channel == "final" else "<|end|>"
    return [*out, (closing, TokenLabel(role, channel, None, "marker", number, -1))]


def pattern_of(n, generator, window):
    """Give [head, query, key] and [head, query] whose rows sum to 1 together."""
    scores = 2 * torch.randn(HEADS, n, n + 1, generator=generator)
    scores[:, :, 0] += 2.0  # the sink
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    if window:
        seen &= torch.ones(n, n, dtype=torch.bool).triu(1 - window)
    scores[:, :, 1:].masked_fill_(~seen, -torch.inf)
    weights = scores.softmax(-1)
    return weights[:, :, 1:], weights[:, :, 0]


def hand_trace(rows=2, messages=MESSAGES, pads=3):
    """Row 0 is padded in front, row 1 not; both say the same."""
    said = [t for i, m in enumerate(messages) for t in message_tokens(i, *m)]
    pad = ("<|endoftext|>", TokenLabel(None, None, None, "pad", -1, -1))
    written = [[pad] * pads + said, said + [pad] * pads][:rows]
    n, generator = len(said) + pads, torch.Generator().manual_seed(0)
    logits = torch.randn(LAYERS, rows, n, EXPERTS, generator=generator)
    top = logits.topk(K)
    activations = {}
    for layer in (2, 3):
        made = [pattern_of(n, generator, WINDOW if layer == 2 else None) for _ in range(rows)]
        activations[f"blocks.{layer}.attn.hook_pattern"] = torch.stack([p for p, _ in made])
        activations[f"blocks.{layer}.attn.hook_sink"] = torch.stack([s for _, s in made])
    span = SentenceSpan(0, 0, None, 0, n)
    return SimpleNamespace(
        tokens=torch.arange(rows * n).reshape(rows, n),
        mask=torch.tensor([[label.part != "pad" for _, label in row] for row in written]),
        strings=[[text for text, _ in row] for row in written],
        spans=[
            Spans(tuple(label for _, label in row), tuple(t for t, _ in row), (), (span,))
            for row in written
        ],
        routing=SimpleNamespace(
            experts=top.indices.to(torch.int16), weights=top.values.softmax(-1), logits=logits
        ),
        activations=activations,
        layers=tuple(range(LAYERS)),
        places=tuple(range(n)),
        context=None,
        config={
            "num_local_experts": EXPERTS,
            "sliding_window": WINDOW,
            "num_hidden_layers": LAYERS,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        provenance={"model": "made by hand"},
    )


@pytest.fixture
def trace():
    return hand_trace()


@pytest.fixture
def long_trace():
    """600 words of analysis and 64 heads' worth of nothing new: too big a page at full size."""
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(["A", "is", "7", "so", "plus"], 600)) + "."
    return hand_trace(rows=1, messages=[("assistant", "analysis", text)], pads=0)


@pytest.fixture
def buffers_of():
    """Read the arrays out of a piece of HTML, as the page does."""

    def read(html):
        packed = re.search(r'class="gptoss-payload">(.*?)</script>', html, re.S).group(1)
        raw = gzip.decompress(base64.b64decode(packed))
        return {
            b["name"]: np.frombuffer(raw, b["dtype"], b["length"], b["offset"]).reshape(b["shape"])
            for b in header(html)["buffers"]
        }

    return read


@pytest.fixture
def header_of():
    """Read the header out of a piece of HTML."""
    return header


def header(html):
    return json.loads(re.search(r'class="gptoss-header">(.*?)</script>', html, re.S).group(1))


@pytest.fixture
def wide_trace():
    """64 heads over 512 tokens, in one layer."""
    words = " ".join(["seven"] * 507)
    trace = hand_trace(rows=1, messages=[("assistant", "analysis", words)], pads=0)
    n, generator = trace.tokens.shape[1], torch.Generator().manual_seed(1)
    scores = torch.randn(64, n, n, generator=generator).masked_fill_(
        ~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf
    )
    trace.activations = {"blocks.2.attn.hook_pattern": scores.softmax(-1)[None] * 0.8}
    return trace


@pytest.fixture
def outputs(monkeypatch):
    """What is displayed: data, name of the output, and whether it replaces what stood there."""
    import IPython.display

    shown = []

    class Handle:
        display_id = "here"

        def update(self, data, raw=False):
            shown.append(SimpleNamespace(data=data, name=self.display_id, update=True))

    def display(data, metadata=None, raw=False, display_id=None):
        shown.append(SimpleNamespace(data=data, name="here", update=False))
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    return shown


VOCABULARY = {7: " seven", 8: " eight", 9: "</script>", 10: ".", 11: " plus"}


def hand_lens(layers=4, pads=2, n=6, k=3):
    """Two rows; the target " eight" rises from rank 3 to the top, layer by layer."""
    from gptoss_workbench.lens import LensResult

    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(list(VOCABULARY))
    rise = torch.linspace(0, 4, layers)[:, None, None] * (ids == 8)
    logits = torch.randn(layers, 2, n + pads, len(ids), generator=generator)
    logits = (logits + rise[:, :, None]).log_softmax(-1)
    top = logits.topk(k)
    entropy = -(logits.exp() * logits).sum(-1)
    kl = (logits[-1].exp() * (logits[-1] - logits)).sum(-1)
    places = torch.arange(n + pads).expand(2, -1).clone()
    places[0, :pads] = -1
    prompt = ids[torch.arange(2 * (n + pads)).reshape(2, -1) % len(ids)]
    return LensResult(
        tokens=ids[top.indices],
        log_probs=top.values,
        log_sum_exp=torch.zeros(layers, 2, n + pads),
        entropy=entropy,
        target_log_prob=logits[..., 1],
        rank=(logits > logits[..., 1:2]).sum(-1),
        kl=kl,
        layers=tuple(range(layers)),
        sites=("resid_post",) * layers,
        prompt=prompt,
        target=torch.full((2, n + pads), 8),
        places=places,
        strings=VOCABULARY,
        provenance={"model": "made by hand"},
    )


def hand_patches(layers=3, width=4, heads=2):
    """Position 2 of layer 1 restores the clean run; head 1 of layer 2 works against it."""
    from gptoss_workbench.patching import Cells, PatchResult
    from gptoss_workbench.patching.nodes import ALL
    from gptoss_workbench.patching.result import Prompts

    grid = np.indices((layers, width)).reshape(2, -1)
    by_head = np.indices((layers, heads)).reshape(2, -1)
    none, every = np.full(grid.shape[1], -1), np.full(by_head.shape[1], ALL)
    pos = np.concatenate([grid[1], every])
    cells = Cells(
        site=np.array(["resid_pre"] * len(none) + ["z"] * len(every)),
        layer=np.concatenate([grid[0], by_head[0]]),
        pos=pos,
        source=pos,
        head=np.concatenate([none, by_head[1]]),
        slot=np.full(len(pos), -1),
        expert=np.full(len(pos), -1),
        neuron=np.full(len(pos), -1),
    )
    clean, corrupted = np.array([2.0, 3.0]), np.array([-2.0, -1.0])
    effect = np.zeros(len(pos))
    effect[(cells.site == "resid_pre") & (cells.layer == 1) & (pos == 2)] = 1.0
    effect[(cells.site == "z") & (cells.layer == 2) & (cells.head == 1)] = -0.5
    value = corrupted + effect[:, None] * (clean - corrupted)
    words = [["E", " is", " 7", "."], ["B", " is", " 3", "."]]
    other = [["E", " is", " 8", "."], ["B", " is", " 5", "."]]
    tokens = torch.arange(8).reshape(2, 4)
    return PatchResult(
        cells=cells,
        value=value,
        clean=clean,
        corrupted=corrupted,
        prompts=Prompts(tokens, tokens, words, other),
        metric="logit difference",
        method="activation patching",
        direction="denoise",
        source="made by hand",
    )


@pytest.fixture
def lens_result():
    return hand_lens()


@pytest.fixture
def patches():
    return hand_patches()
