"""What one cell of a sweep is: a site, a layer, a position, and the part of the tensor there.

resid_pre, resid_mid, resid_post, attn_out, mlp_out   the whole vector
z, q, k, v, rot_q, rot_k, pattern                     one head (k, v: one key/value head);
                                                      a pattern's position is its query
expert_out      one slot: the unweighted output of the j-th ranked expert; the weight stays
expert          one expert by its number, wherever it ranks: its weighted contribution,
                which is 0 where it was not chosen
expert_post     one neuron of a slot's expert. The value comes from the same expert in the
                other run, at whatever rank; where that run did not choose it, there is no cell
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

ALL = -1
"""In a column of cells: all positions together, or "this site has no such part"."""


class Site(NamedTuple):
    """Where cells of one kind live."""

    hook: str
    """the hook point, with {layer}"""
    parts: tuple[str, ...] = ()
    """columns that pick a part of the vector there"""
    needs: tuple[str, ...] = ()
    """further hook points a patch is computed from"""


_ROUTE = ("blocks.{layer}.mlp.hook_expert_indices",)
_WEIGHED = (
    *_ROUTE,
    "blocks.{layer}.mlp.hook_expert_weights",
    "blocks.{layer}.mlp.hook_expert_out",
)
SITES: dict[str, Site] = {
    **{
        name: Site(f"blocks.{{layer}}.hook_{name}")
        for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    },
    **{
        name: Site(f"blocks.{{layer}}.attn.hook_{name}", ("head",))
        for name in ("z", "q", "k", "v", "rot_q", "rot_k", "pattern")
    },
    "expert_out": Site("blocks.{layer}.mlp.hook_expert_out", ("slot",)),
    "expert": Site("blocks.{layer}.hook_mlp_out", ("expert",), _WEIGHED),
    "expert_post": Site("blocks.{layer}.mlp.hook_expert_post", ("slot", "neuron"), _ROUTE),
}
PER_KV_HEAD = ("k", "v", "rot_k")
INTO_KEYS = ("resid_pre", *PER_KV_HEAD)
"""Sites that later positions of the same layer see."""
OF_EXPERTS = ("expert_out", "expert", "expert_post", "mlp_out")
BEFORE_EXPERTS = ("z", "attn_out", "resid_mid")
AFTER_ATTENTION = (*BEFORE_EXPERTS, *OF_EXPERTS, "resid_post")
"""Sites behind which, in the same layer, no position sees another."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a sweep, one a row; -1 where a column says nothing (pos: all positions)."""

    site: np.ndarray
    layer: np.ndarray
    pos: np.ndarray
    """Position that is patched."""
    source: np.ndarray
    """Position in the other run that the value comes from."""
    head: np.ndarray
    slot: np.ndarray
    expert: np.ndarray
    neuron: np.ndarray

    def __len__(self) -> int:
        return len(self.site)

    def __getitem__(self, index: Any) -> Cells:
        """Some of the rows: a mask, a slice or positions."""
        return Cells(**{f.name: np.atleast_1d(getattr(self, f.name)[index]) for f in fields(self)})

    def columns(self) -> dict[str, np.ndarray]:
        """Columns that say something, by name."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        if np.array_equal(self.pos, self.source):
            del every["source"]
        stays = ("site", "layer", "pos")
        return {n: c for n, c in every.items() if n in stays or bool((c != ALL).any())}

    def describe(self, i: int) -> str:
        """One cell in words."""
        said = [f"{n} {c[i]}" for n, c in self.columns().items() if n != "site" and c[i] != ALL]
        return " ".join([str(self.site[i]), *said])


class Wanted(NamedTuple):
    """What a caller asked to be swept; None is everything there is."""

    layers: Sequence[int] | None = None
    positions: Any = None
    heads: Sequence[int] | None = None
    slots: Sequence[int] | None = None
    experts: Sequence[int] | None = None
    neurons: Sequence[int] | None = None


def make_cells(
    sites: Sequence[str] | str, wanted: Wanted, config: Any, widths: tuple[int, int], base: int = 1
) -> Cells:
    """The grid of every site, one after the other; within one, layer is slowest, neuron fastest.

    Args:
        wanted: positions are None (each place alone), "all" (all places patched together), a list
            of places (negative from the end), or pairs (clean place, corrupted place).
        config: the model's Config.
        widths: lengths of the clean and of the corrupted prompt.
        base: which of the two is patched: 0 the clean one, 1 the corrupted one.
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    if unknown := [site for site in sites if site not in SITES]:
        raise ValueError(f"sites are among {', '.join(SITES)}; got {unknown}")
    if not sites:
        raise ValueError("sites: give at least one")
    pairs = places(wanted.positions, widths)
    pairs = pairs if base == 0 else pairs[:, ::-1]
    return join([_grid(site, wanted, config, pairs) for site in sites])


def join(parts: Iterable[Cells]) -> Cells:
    """Several sets of cells, one after the other."""
    parts = list(parts)
    names = [f.name for f in fields(Cells)]
    return Cells(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def _grid(site: str, wanted: Wanted, config: Any, pairs: np.ndarray) -> Cells:
    layers = listed("layers", wanted.layers, config.num_hidden_layers)
    parts = [_part(name, site, wanted, config) for name in SITES[site].parts]
    axes = np.meshgrid(layers, np.arange(len(pairs)), *parts, indexing="ij")
    layer, at, *picked = [axis.ravel() for axis in axes]
    none = np.full(len(layer), ALL)
    pos, source = pairs[at].T
    empty = Cells(np.full(len(layer), site), layer, pos, source, none, none, none, none)
    return replace(empty, **dict(zip(SITES[site].parts, picked, strict=True)))


def places(positions: Any, widths: tuple[int, int]) -> np.ndarray:
    """[cell, 2] places (clean, corrupted) for `positions`."""
    if positions is None or isinstance(positions, str):
        if positions not in (None, "all"):
            raise ValueError(f"positions: None, 'all', places or pairs; got {positions!r}")
        alone = positions is None
        return np.arange(widths[0])[:, None].repeat(2, 1) if alone else np.full((1, 2), ALL)
    given = [positions] if isinstance(positions, (int, np.integer)) else list(positions)
    pairs = [p if isinstance(p, (tuple, list)) else (p, p) for p in given]
    both = zip(zip(*pairs, strict=True), widths, strict=True)
    return np.stack([listed("positions", numbers, width) for numbers, width in both], 1)


def _part(name: str, site: str, wanted: Wanted, config: Any) -> np.ndarray:
    heads = config.num_key_value_heads if site in PER_KV_HEAD else config.num_attention_heads
    given, size = {
        "head": (wanted.heads, heads),
        "slot": (wanted.slots, config.num_experts_per_tok),
        "expert": (wanted.experts, config.num_local_experts),
        "neuron": (wanted.neurons, config.intermediate_size),
    }[name]
    if name == "neuron" and given is None:
        raise ValueError(
            f"site {site!r} has {size} neurons a slot: name some with neurons=, or find them with "
            "attribution_patching(neurons=range(...)) and pass its .top(n) as cells="
        )
    return listed(f"{name}s", given, size)


def listed(what: str, given: Sequence[int] | int | None, size: int) -> np.ndarray:
    """The given numbers, negative ones from the end; None is all of them."""
    if given is None:
        return np.arange(size)
    numbers = np.array([given] if isinstance(given, (int, np.integer)) else list(given), np.int64)
    if numbers.size == 0 or numbers.min() < -size or numbers.max() >= size:
        raise ValueError(f"{what}: expected numbers from {-size} to {size - 1}; got {given}")
    return np.where(numbers < 0, numbers + size, numbers)


def sources(cells: Cells) -> list[str]:
    """Names of the hook points whose values these cells need."""
    names = set()
    for site, layer in sorted(set(zip(cells.site.tolist(), cells.layer.tolist(), strict=True))):
        kind = SITES[site]
        names |= {name.format(layer=layer) for name in (kind.hook, *kind.needs)}
    return sorted(names)
