"""Two traces compared token by token, where they say the same.

Rows pair up by number. Within a row, messages pair up in order by role, channel and recipient;
within paired messages, tokens pair up by the longest matching runs of ids. So a prompt with a
sentence more is compared around that sentence, not shifted by it. Where either has
no spans the whole row counts as one message. Tokens without a partner are counted, not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_workbench import trace_tables

if TYPE_CHECKING:
    import pandas

    from gptoss_workbench.trace import Trace


class Pair(NamedTuple):
    """One token that both traces hold; a and b are columns of their tensors."""

    row: int
    a: int
    b: int


@dataclass(frozen=True, repr=False, eq=False)
class TraceDiff:
    """What changed from trace `a` to trace `b` at the tokens both hold.

    difference = trace_a.diff(trace_b)
    difference.to_pandas("routing").groupby("layer").experts_changed.mean()
    """

    a: Trace
    b: Trace
    pairs: tuple[Pair, ...]
    """The aligned tokens, in order."""
    layers: tuple[int, ...]
    """The layers whose routing both hold."""
    experts_changed: Int[Tensor, "pair layer"] | None
    """Experts chosen in a and not in b."""
    weight_l1: Float[Tensor, "pair layer"] | None
    """Sum over all experts of |weight in a - weight in b|."""
    activation_l2: dict[str, Float[Tensor, " pair"]]
    """By hook name, the length of the difference at each token."""
    only_a: int
    """Real tokens of a without a partner in b."""
    only_b: int
    """Real tokens of b without a partner in a."""

    def to_pandas(self, what: str = "routing") -> pandas.DataFrame:
        """Give a long table: "tokens", "routing" (a row a layer), "activations" (a row a name)."""
        if what not in ("tokens", "routing", "activations"):
            raise ValueError(
                f'TraceDiff.to_pandas: expected "tokens", "routing" or "activations", got {what!r}'
            )
        tokens = self._tokens()
        if what == "tokens":
            return trace_tables.frame(tokens)
        if what == "activations":
            names = list(self.activation_l2)
            values = [self.activation_l2[name] for name in names]
            return _crossed(tokens, "name", names, {"l2": _columns(values, len(self.pairs))})
        if self.experts_changed is None or self.weight_l1 is None:
            raise ValueError("TraceDiff.to_pandas: routing was not kept in both traces")
        measured = {"experts_changed": self.experts_changed, "weight_l1": self.weight_l1}
        return _crossed(tokens, "layer", list(self.layers), measured)

    def _tokens(self) -> dict[str, list[Any]]:
        pairs = self.pairs
        columns: dict[str, list[Any]] = {
            "row": [pair.row for pair in pairs],
            "pos_a": [self.a.places[pair.a] for pair in pairs],
            "pos_b": [self.b.places[pair.b] for pair in pairs],
            "token": [int(self.a.tokens[pair.row, pair.a]) for pair in pairs],
        }
        if self.a.strings is not None:
            columns["string"] = [self.a.strings[pair.row][pair.a] for pair in pairs]
        if self.a.spans is not None:
            labels = [self.a.spans[pair.row].labels[pair.a] for pair in pairs]
            for name in trace_tables.LABELS:
                columns[name] = [getattr(label, name) for label in labels]
        return columns

    def _routing_changes(self) -> str:
        assert self.experts_changed is not None and self.weight_l1 is not None
        by_layer = self.experts_changed.float().mean(0)
        weights = f"weights moved by {self.weight_l1.mean():.3g} (L1)"
        if not by_layer.any():
            return f"no expert changed, {weights}"
        k = self.a.routing.experts.shape[-1] if self.a.routing else 0
        at = int(by_layer.argmax())
        return (
            f"{by_layer.mean():.2f} of {k} experts changed per token and layer, most in layer "
            f"{self.layers[at]} ({by_layer[at]:.2f}); {weights}"
        )

    def __repr__(self) -> str:
        lines = [
            f"TraceDiff: {len(self.pairs)} tokens in both, {self.only_a} only in a, "
            f"{self.only_b} only in b"
        ]
        if self.experts_changed is not None and self.weight_l1 is not None and self.pairs:
            lines.append(f"  routing: {self._routing_changes()}")
        for name, value in list(self.activation_l2.items())[:8]:
            lines.append(f"  {name}: L2 {value.mean():.3g} on average, {value.max():.3g} at most")
        return "\n".join(lines)


def diff(a: Trace, b: Trace) -> TraceDiff:
    """Align two traces and measure what changed."""
    if len(a) != len(b):
        raise ValueError(
            f"Trace.diff: expected as many rows in both, got {len(a)} and {len(b)}; pick rows with "
            "trace[row]"
        )
    pairs = tuple(pair for row in range(len(a)) for pair in _pairs(a, b, row))
    layers = tuple(layer for layer in a.layers if layer in b.layers)
    changed, moved = _routing(a, b, pairs, layers)
    return TraceDiff(
        a=a,
        b=b,
        pairs=pairs,
        layers=layers if changed is not None else (),
        experts_changed=changed,
        weight_l1=moved,
        activation_l2={name: _l2(a, b, pairs, name) for name in _comparable(a, b)} if pairs else {},
        only_a=a.n_tokens - len(pairs),
        only_b=b.n_tokens - len(pairs),
    )


def _pairs(a: Trace, b: Trace, row: int) -> list[Pair]:
    """Align the tokens of one row, message by message."""
    by_message = a.spans is not None and b.spans is not None
    messages_a, messages_b = (_messages(trace, row, by_message) for trace in (a, b))
    out = []
    for i, j, size in _matches([m[0] for m in messages_a], [m[0] for m in messages_b]):
        for step in range(size):
            at_a, at_b = messages_a[i + step][1], messages_b[j + step][1]
            ids_a, ids_b = (t.tokens[row, at].tolist() for t, at in ((a, at_a), (b, at_b)))
            for start_a, start_b, run in _matches(ids_a, ids_b):
                out += [Pair(row, at_a[start_a + n], at_b[start_b + n]) for n in range(run)]
    return out


def _messages(trace: Trace, row: int, by_message: bool) -> list[tuple[tuple[Any, ...], list[int]]]:
    """Give each message's identity and its columns; tokens outside messages form runs too."""
    columns = trace.mask[row].nonzero()[:, 0].tolist()
    if trace.spans is None or not by_message:
        return [((), columns)]
    out: list[tuple[int, tuple[Any, ...], list[int]]] = []
    for at in columns:
        label = trace.spans[row].labels[at]
        if not out or out[-1][0] != label.message:
            out.append((label.message, (label.role, label.channel, label.recipient), []))
        out[-1][2].append(at)
    return [(identity, places) for _, identity, places in out]


def _matches(a: list[Any], b: list[Any]) -> list[tuple[int, int, int]]:
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in blocks if block.size]


def _routing(
    a: Trace, b: Trace, pairs: tuple[Pair, ...], layers: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Count experts changed, and the L1 distance of the weights, over pairs and layers."""
    if a.routing is None or b.routing is None or not layers:
        return None, None
    n_experts = 1 + max(int(a.routing.experts.max()), int(b.routing.experts.max()))
    dense_a = _dense(a, [pair.a for pair in pairs], pairs, layers, n_experts)
    dense_b = _dense(b, [pair.b for pair in pairs], pairs, layers, n_experts)
    (chosen_a, weight_a), (chosen_b, weight_b) = dense_a, dense_b
    return (chosen_a & ~chosen_b).sum(-1), (weight_a - weight_b).abs().sum(-1)


def _dense(
    trace: Trace, columns: list[int], pairs: tuple[Pair, ...], layers: tuple[int, ...], experts: int
) -> tuple[Tensor, Tensor]:
    """Spread the chosen experts and weights over all experts: [pair, layer, expert]."""
    assert trace.routing is not None
    at = [trace.layers.index(layer) for layer in layers]
    places = torch.tensor([pair.row for pair in pairs]).long(), torch.tensor(columns).long()
    index = trace.routing.experts[at][:, *places].long().transpose(0, 1)
    weight = trace.routing.weights[at][:, *places].transpose(0, 1)
    shape = (len(pairs), len(layers), experts)
    chosen = torch.zeros(shape, dtype=torch.bool).scatter_(-1, index, True)
    return chosen, torch.zeros(shape).scatter_(-1, index, weight.float())


def _comparable(a: Trace, b: Trace) -> list[str]:
    """Name the activations that can be subtracted token by token.

    Expert slots are left out: slot j of two runs may hold different experts.
    """
    return [
        name
        for name, axes in a.axes.items()
        if name in b.activations
        and axes[:2] == ("batch", "pos")
        and "k" not in axes
        and a.activations[name].shape[2:] == b.activations[name].shape[2:]
    ]


def _l2(a: Trace, b: Trace, pairs: tuple[Pair, ...], name: str) -> Tensor:
    rows, at_a, at_b = (list(column) for column in zip(*pairs, strict=True))
    difference = a.activations[name][rows, at_a].float() - b.activations[name][rows, at_b].float()
    return difference.flatten(1).norm(dim=1)


def _columns(values: list[Tensor], pairs: int) -> Tensor:
    return torch.stack(values, 1) if values else torch.zeros(pairs, 0)


def _crossed(
    tokens: dict[str, list[Any]], axis: str, entries: list[Any], measured: dict[str, Tensor]
) -> pandas.DataFrame:
    """Repeat every token's row for every entry of an axis."""
    repeated = {
        name: [value for value in column for _ in entries] for name, column in tokens.items()
    }
    repeated[axis] = entries * len(tokens["row"])
    return trace_tables.frame(
        repeated | {name: value.flatten().numpy() for name, value in measured.items()}
    )
