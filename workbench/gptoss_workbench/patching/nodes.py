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

ALL = -(1 << 31)
"""As a position: all of them together. -1 is the last one."""
NONE = -1
"""As a head, slot, expert or neuron: the site has no such part."""


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
PARTS = ("head", "slot", "expert", "neuron")
PER_KV_HEAD = ("k", "v", "rot_k")
INTO_KEYS = ("resid_pre", *PER_KV_HEAD)
"""Sites that later positions of the same layer see."""
OF_EXPERTS = ("expert_out", "expert", "expert_post", "mlp_out")
BEFORE_EXPERTS = ("z", "attn_out", "resid_mid")
AFTER_ATTENTION = (*BEFORE_EXPERTS, *OF_EXPERTS, "resid_post")
"""Sites behind which, in the same layer, no position sees another."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a sweep, one a row; NONE where the site has no such part."""

    site: np.ndarray
    layer: np.ndarray
    pos: np.ndarray
    """Position that is patched: from the start, negative from the end of prompts of different
    length, or ALL."""
    source: np.ndarray
    """Position in the other run that the value comes from, counted likewise."""
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
        stays = ("site", "layer", "pos", "source")
        return {n: c for n, c in every.items() if n in stays or bool((c != NONE).any())}

    def describe(self, i: int) -> str:
        """One cell in words."""
        parts = {n: c[i] for n, c in self.columns().items() if n not in PARTS or c[i] != NONE}
        site = str(parts.pop("site"))
        return " ".join([site, *(f"{n} {'all' if p == ALL else p}" for n, p in parts.items())])


class Sides(NamedTuple):
    """How long the prompts of the clean and of the corrupted side are, [2] each."""

    longest: tuple[int, int]
    shortest: tuple[int, int]

    @property
    def ragged(self) -> bool:
        """Whether one side has prompts of different length."""
        return self.longest != self.shortest


class Wanted(NamedTuple):
    """What a caller asked to be swept; None is everything there is."""

    layers: Sequence[int] | None = None
    positions: Any = None
    heads: Sequence[int] | None = None
    slots: Sequence[int] | None = None
    experts: Sequence[int] | None = None
    neurons: Sequence[int] | None = None


def make_cells(
    sites: Sequence[str] | str, wanted: Wanted, config: Any, sides: Sides, base: int = 1
) -> Cells:
    """The grid of every site, one after the other; within one, layer is slowest, neuron fastest.

    Args:
        wanted: positions are None (each place alone), "all" (all places patched together), a list
            of places (negative from the end), or pairs (clean place, corrupted place).
        config: the model's Config.
        base: which of the two is patched: 0 the clean one, 1 the corrupted one.
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    if unknown := [site for site in sites if site not in SITES]:
        raise ValueError(f"sites are among {', '.join(SITES)}; got {unknown}{_short(unknown[0])}")
    if not sites:
        raise ValueError("sites: give at least one")
    pairs = places(wanted.positions, sides)
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
    none = np.full(len(layer), NONE)
    pos, source = pairs[at].T
    empty = Cells(np.full(len(layer), site), layer, pos, source, none, none, none, none)
    return replace(empty, **dict(zip(SITES[site].parts, picked, strict=True)))


def _short(site: str) -> str:
    """A hint where a site is the full name of a hook point."""
    _, _, rest = site.partition("blocks.")
    layer, _, name = rest.partition(".")
    short = [s for s, kind in SITES.items() if name and kind.hook.endswith(f"}}.{name}")]
    return f"; that is sites={short[0]!r}, layers=[{layer}]" if short else ""


def places(positions: Any, sides: Sides) -> np.ndarray:
    """[cell, 2] places (clean, corrupted) for `positions`.

    From the start; from the end on a side whose prompts differ in length.
    """
    if positions is None or isinstance(positions, str):
        if positions not in (None, "all"):
            raise ValueError(f"positions: None, 'all', places or pairs; got {positions!r}")
        if positions is None and sides.ragged:
            raise ValueError(_from_end(sides, "None, each place,"))
        alone = positions is None
        every = np.arange(sides.longest[0])
        return every[:, None].repeat(2, 1) if alone else np.full((1, 2), ALL)
    given = [positions] if isinstance(positions, (int, np.integer)) else list(positions)
    if not given:
        raise ValueError("positions: give at least one place")
    pairs = [p if isinstance(p, (tuple, list)) else (p, p) for p in given]
    both = enumerate(zip(*pairs, strict=True))
    return np.stack([_side(numbers, side, sides) for side, numbers in both], 1)


def _side(numbers: Sequence[int], side: int, sides: Sides) -> np.ndarray:
    """Places on the clean side (0) or the corrupted one (1)."""
    longest, shortest = sides.longest[side], sides.shortest[side]
    if longest == shortest:
        return listed("positions", numbers, longest)
    if max(numbers) >= 0 or min(numbers) < -shortest:
        raise ValueError(_from_end(sides, f"{list(numbers)}"))
    return np.array(numbers)


def _from_end(sides: Sides, given: str) -> str:
    shortest, longest = min(sides.shortest), max(sides.longest)
    return (
        f"positions: these prompts have {shortest} to {longest} tokens, so {given} would be other "
        f"places in each. Count from their end (numbers from {-shortest} to -1, or pairs of "
        "them), give positions='all', or patch prompts of one length at a time."
    )


def on_grid(cells: Cells, sides: Sides, base: int = 1) -> Cells:
    """The cells with columns of prompts padded on the left in place of positions."""
    columns = {}
    for name, side in (("pos", base), ("source", 1 - base)):
        at, longest = getattr(cells, name), sides.longest[side]
        one = at[at != ALL]
        if len(one) and longest != sides.shortest[side]:
            _side(one.tolist(), side, sides)
        elif len(one) and not -longest <= one.min() <= one.max() < longest:
            raise ValueError(
                f"cells: positions are {-longest} to {longest - 1}; got {one.min()} to {one.max()}"
            )
        columns[name] = np.where((at < 0) & (at != ALL), at + longest, at)
    return replace(cells, **columns)


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
