"""Attention forward: scores, softmax and mixing fused, a tile of rows at a time.

A row is one query of one head; the heads that share keys lie side by side in a tile. Keys come in
slots (attention_places.py). Softmax runs online within SPLIT slots, m the maximum so far,

    l = Σ 2^(x - m)    y = Σ 2^(x - m) v    with x = q · k log2(e) / sqrt(d_head),

and the splits are merged in order, the sink last. One program goes through all splits of its rows,
or, where few rows have many keys, a program takes one split and another merges: the same sums in
the same order, so the same bits. Slots that a row does not see add exactly 0.
"""

import triton
import triton.language as tl

from gptoss_kernels.triton.attention_places import BLOCK, FAR, STEP

BLOCK, STEP = tl.constexpr(BLOCK), tl.constexpr(STEP)


@triton.jit
def _halves(x):
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def product(a, b, acc):
    """acc + a · b; float32 factors as two bfloat16 each, less the product of the low parts."""
    if a.dtype == tl.bfloat16 and b.dtype == tl.bfloat16:
        return tl.dot(a, b, acc)
    high, low = _halves(a)
    if b.dtype == tl.bfloat16:
        return tl.dot(high, b, tl.dot(low, b, acc))
    other_high, other_low = _halves(b)
    acc = tl.dot(high, other_low, tl.dot(low, other_high, acc))
    return tl.dot(high, other_high, acc)


@triton.jit
def sees(query_pos, key_pos, window, WINDOWED: tl.constexpr):
    """Positions that broadcast; padding among queries is -1, among keys FAR."""
    seen = key_pos <= query_pos
    if WINDOWED:
        seen = seen & (key_pos > query_pos - window)
    return seen


@triton.jit
def own_rows(tile, n_query, G: tl.constexpr, ROWS: tl.constexpr):
    """Query and head within the group of each row of a tile, and whether it is there."""
    row = tile * ROWS + tl.arange(0, ROWS)
    query = row // G
    return query, row - query * G, query < n_query


@triton.jit
def position_of(pos_ptr, batch, query, n_query, live):
    pos = tl.load(pos_ptr + batch * n_query + query, mask=live, other=-1).to(tl.int32)
    return tl.maximum(pos, -1)


@triton.jit
def load_rows(x_ptr, start, there, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[row, d_head]; zeros where no row is there. None is there everywhere."""
    d = tl.arange(0, BLOCK_D)
    at = x_ptr + start.to(tl.int64)[:, None] + d[None, :]
    if there is not None:
        return tl.load(at, mask=there[:, None] & (d < D)[None, :], other=0.0)
    elif D == BLOCK_D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(d < D)[None, :], other=0.0)


@triton.jit
def slots_seen(bounds_ptr, batch, pos, window, WINDOWED: tl.constexpr, KEYS: tl.constexpr):
    """First (of a whole tile) and end of the slots that any query at `pos` sees."""
    base = tl.load(bounds_ptr + batch * 4)
    low, high = tl.load(bounds_ptr + batch * 4 + 1), tl.load(bounds_ptr + batch * 4 + 2)
    latest = tl.max(pos, 0)
    if tl.load(bounds_ptr + batch * 4 + 3) != 0:
        high = tl.minimum(high, latest - base + 1)
        if WINDOWED:
            earliest = tl.min(tl.where(pos < 0, FAR, pos), 0)
            low = tl.maximum(low, earliest - window + 1 - base)
    none = latest < 0  # pyright: ignore[reportOperatorIssue]
    return tl.where(none, 0, low // KEYS * KEYS), tl.where(none, 0, high)


@triton.jit
def places_of(place_ptr, slot, WIDE: tl.constexpr):
    """Where the keys in some slots lie. A slot without a key lends another's place, so that what is
    read is finite. Addresses of 64 bits cost as much as the softmax: WIDE only if they must be."""
    place = tl.load(place_ptr + slot)
    return place.to(tl.int64) if WIDE else place


@triton.jit
def keys_of_tile(place_ptr, position_ptr, slot):
    """Place and position of the keys in some slots; the position of a slot without a key is FAR."""
    return tl.load(place_ptr + slot).to(tl.int64), tl.load(position_ptr + slot)


@triton.jit
def hides(hidden_ptr, member, first, G: tl.constexpr, KEYS: tl.constexpr):
    """[row, key]: whether the slots from `first` on are hidden from the row's head in the group."""
    tl.static_assert(KEYS <= 64)
    i = tl.arange(0, KEYS)
    block = first // BLOCK
    at = hidden_ptr + block * (G * BLOCK // 32 + 2) + member * (BLOCK // 32)
    at += first // 32 - block * (BLOCK // 32)
    word = tl.load(at)[:, None]
    if KEYS < 32:
        return (word & (1 << (first % 32 + i))[None, :]) != 0
    if KEYS == 64:
        word = tl.where((i < 32)[None, :], word, tl.load(at + 1)[:, None])
    return (word & (1 << (i % 32))[None, :]) != 0


@triton.jit
def tiles_without(
    whole_ptr, hidden_ptr, start, base, least, latest, window,
    G: tl.constexpr, WINDOWED: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Which tiles need no mask, and in which no key is hidden; of the block that holds `start`.

    Bit i of the first word: queries from `least` to `latest` all see KEYS slots from `start` + STEP
    i on. Bit i of the second: nobody in the group has KEYS slots from the block's STEP i on hidden.
    """
    block = start // BLOCK
    clear, origin = -1, base + block * BLOCK
    if hidden_ptr is None:
        word = tl.load(whole_ptr + block)
    else:
        at = hidden_ptr + block * (G * BLOCK // 32 + 2) + G * BLOCK // 32
        clear, word = _of_tiles(tl.load(at), KEYS), tl.load(at + 1)
    one = tl.full([], 1, tl.int64)
    end = tl.minimum(tl.maximum(least - origin + 1, 0), BLOCK) // STEP
    word = word & ((one << end) - 1).to(tl.int32)
    if WINDOWED:
        begin = tl.minimum(tl.maximum(latest - window + 1 - origin, 0), BLOCK)
        word = word & -(one << ((begin + STEP - 1) // STEP)).to(tl.int32)
    return _of_tiles(word, KEYS) >> (start // STEP % 32), clear


@triton.jit
def _of_tiles(word, KEYS: tl.constexpr):
    """Bits of KEYS slots from those of STEP slots."""
    tl.static_assert(KEYS // STEP * STEP == KEYS)
    for i in tl.static_range(0, 3):  # pyright: ignore
        if (STEP << (i + 1)) <= KEYS:
            word = word & (word >> (1 << i))
    return word


@triton.jit
def _tied(x, product):
    """x; says outside of any branch that it comes from `product`: the compiler looks no further
    for products that follow each other, whose rows are to stay in a warp. No instruction is left.
    """
    nothing = (product.to(tl.int32, bitcast=True) & 1) >> 1
    return (x.to(tl.int32, bitcast=True) | nothing).to(tl.float32, bitcast=True)


@triton.jit
def _attend_split(
    q, pos, member, hidden_ptr, k_ptr, v_ptr, place_ptr, position_ptr, start, end, plain, clear,
    window, scale, k_step, v_step,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOWED: tl.constexpr,
    WIDE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """m, l and y of the keys in slots start ... end - 1; m in units of x.

    Tiles go without a mask where `plain` (see `tiles_without`) says that every row sees all keys.
    """
    ROWS: tl.constexpr = q.shape[0]
    m, total = tl.full([ROWS], -float("inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    y = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first in range(start, end, KEYS):
        slot = first + tl.arange(0, KEYS)
        at = places_of(place_ptr, slot, WIDE)
        k = load_rows(k_ptr, at * k_step, None, D, BLOCK_D)
        x = product(q, k.T, tl.zeros([ROWS, KEYS], tl.float32))
        if plain & 1 == 0:
            key_pos = tl.load(position_ptr + slot)
            seen = sees(pos[:, None], key_pos[None, :], window, WINDOWED)
            masked = tl.where(seen, x, -float("inf"))
            if hidden_ptr is not None:  # noqa: SIM102  while compiling, the other one by the GPU
                if (clear >> (first // STEP % 32)) & 1 == 0:
                    hidden = hides(hidden_ptr, member, first, G, KEYS)
                    masked = tl.where(hidden, -float("inf"), masked)
        else:
            masked = x
        x, plain = _tied(masked, x), plain >> (KEYS // STEP)
        top = tl.maximum(m, tl.max(x, 1))
        shift = tl.where(top == -float("inf"), 0.0, top * scale)
        p = tl.exp2(tl.fma(x, tl.full([ROWS, KEYS], scale, tl.float32), -shift[:, None]))
        fade = tl.exp2(m * scale - shift)
        total, y, m = total * fade + tl.sum(p, 1), y * fade[:, None], top
        if v_ptr is not None:
            v = load_rows(v_ptr, at * v_step, None, D, BLOCK_D)
            y = product(p.to(v.dtype), v, y)
    return m * scale, total, y


@triton.jit
def _joined(m, total, y, other_m, other_total, other_y):
    """The sums of some splits and of the next one."""
    top = tl.maximum(m, other_m)
    shift = tl.where(top == -float("inf"), 0.0, top)
    mine, other = tl.exp2(m - shift), tl.exp2(other_m - shift)
    total = total * mine + other_total * other
    return top, total, y * mine[:, None] + other_y * other[:, None]


@triton.jit
def gained(z, gain):
    """z times a number a row, rounded once more: the bits of a hook that multiplies."""
    return (z.to(tl.float32) * gain[:, None]).to(z.dtype)


@triton.jit
def _finish(
    m, total, y, sinks_ptr, gain_ptr, z_ptr, lse_ptr, mass_ptr, batch, query, head, live,
    n_query, heads, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The sink joins the sum; z, log2 of the sum and the sink's share are stored."""
    sink = tl.load(sinks_ptr + head, mask=live, other=0.0) * 1.4426950408889634
    top = tl.maximum(m, sink)
    fade, absorbed = tl.exp2(m - top), tl.exp2(sink - top)
    total = total * fade + absorbed
    row = (batch * heads + head) * n_query + query
    tl.store(lse_ptr + row, top + tl.log2(total), mask=live)
    tl.store(mass_ptr + row, absorbed / total, mask=live)
    if z_ptr is not None:
        z = (y * (fade / total)[:, None]).to(z_ptr.dtype.element_ty)
        if gain_ptr is not None:
            z = gained(z, tl.load(gain_ptr + row, mask=live, other=1.0))
        d = tl.arange(0, BLOCK_D)
        at = ((batch * n_query + query) * heads + head)[:, None] * D + d[None, :]
        tl.store(z_ptr + at, z, mask=live[:, None] & (d < D)[None, :])


@triton.jit
def attend_kernel(
    q_ptr, k_ptr, v_ptr, sinks_ptr, query_pos_ptr, place_ptr, position_ptr, bounds_ptr, whole_ptr,
    hidden_ptr, gain_ptr, z_ptr, lse_ptr, mass_ptr, sums_ptr, y_ptr,
    n_query, blocks, kv_heads, splits, window, scale,
    q_batch, q_step, k_batch, k_step, v_batch, v_step,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOWED: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """All splits of a tile of rows, or one split, whose sums another kernel merges."""
    kv, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile = tl.num_programs(0) // splits - 1 - tl.program_id(0) // splits  # most keys first
    query, member, live = own_rows(tile, n_query, G, ROWS)
    head, heads = kv * G + member, kv_heads * G
    pos = position_of(query_pos_ptr, batch, query, n_query, live)
    q = load_rows(q_ptr + batch * q_batch, query.to(tl.int64) * q_step + head * D, live, D, BLOCK_D)
    slots = blocks * BLOCK
    if hidden_ptr is not None:
        hidden_ptr += (batch * kv_heads + kv) * blocks * (G * BLOCK // 32 + 2)
    k_ptr += batch * k_batch + kv * D
    if v_ptr is not None:
        v_ptr += batch * v_batch + kv * D
    place_ptr, position_ptr = place_ptr + batch * slots, position_ptr + batch * slots
    low, high = slots_seen(bounds_ptr, batch, pos, window, WINDOWED, KEYS)
    tl.static_assert(BLOCK // SPLIT * SPLIT == BLOCK)
    base, whole_ptr = tl.load(bounds_ptr + batch * 4), whole_ptr + batch * blocks
    least, latest = tl.min(tl.where(live, pos, FAR), 0), tl.max(pos, 0)
    if sums_ptr is not None:
        split = tl.program_id(0) % splits
        low, high = tl.maximum(low, split * SPLIT), tl.minimum(high, split * SPLIT + SPLIT)
        plain, clear = tiles_without(
            whole_ptr, hidden_ptr, low, base, least, latest, window, G, WINDOWED, KEYS
        )
        m, total, y = _attend_split(
            q, pos, member, hidden_ptr, k_ptr, v_ptr, place_ptr, position_ptr,
            low, high, plain, clear, window, scale, k_step, v_step,
            G, D, BLOCK_D, WINDOWED, WIDE, KEYS,
        )  # fmt: skip
        row = ((batch * kv_heads + kv) * splits + split) * n_query * G + query * G + member
        tl.store(sums_ptr + 2 * row, m, mask=live)
        tl.store(sums_ptr + 2 * row + 1, total, mask=live)
        if y_ptr is not None:
            at = row[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
            tl.store(y_ptr + at, y, mask=(live & (total > 0))[:, None])
    else:
        m, total = tl.full([ROWS], -float("inf"), tl.float32), tl.zeros([ROWS], tl.float32)
        y = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for start in range(low // SPLIT * SPLIT, high, SPLIT):
            first = tl.maximum(start, low)
            plain, clear = tiles_without(
                whole_ptr, hidden_ptr, first, base, least, latest, window, G, WINDOWED, KEYS
            )
            other_m, other_total, other_y = _attend_split(
                q, pos, member, hidden_ptr, k_ptr, v_ptr, place_ptr, position_ptr,
                first, tl.minimum(start + SPLIT, high), plain, clear, window, scale,
                k_step, v_step, G, D, BLOCK_D, WINDOWED, WIDE, KEYS,
            )  # fmt: skip
            m, total, y = _joined(m, total, y, other_m, other_total, other_y)
        _finish(m, total, y, sinks_ptr, gain_ptr, z_ptr, lse_ptr, mass_ptr, batch, query, head,
                live, n_query, heads, D, BLOCK_D)  # fmt: skip


@triton.jit
def merge_kernel(
    sums_ptr, y_ptr, sinks_ptr, gain_ptr, z_ptr, lse_ptr, mass_ptr, n_query, kv_heads, splits,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """The splits of some rows, in order; what AHEAD - 1 splits hold is on its way meanwhile."""
    kv, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query, member, live = own_rows(tl.program_id(0), n_query, G, ROWS)
    m, total = tl.full([ROWS], -float("inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    y, d = tl.zeros([ROWS, BLOCK_D], tl.float32), tl.arange(0, BLOCK_D)
    for split in tl.range(0, splits, num_stages=AHEAD):  # pyright: ignore
        row = ((batch * kv_heads + kv) * splits + split) * n_query * G + query * G + member
        other_m = tl.load(sums_ptr + 2 * row, mask=live, other=-float("inf"))
        other_total = tl.load(sums_ptr + 2 * row + 1, mask=live, other=0.0)
        other_y = tl.zeros([ROWS, BLOCK_D], tl.float32)
        if y_ptr is not None:
            at = y_ptr + row[:, None] * BLOCK_D + d[None, :]
            other_y = tl.load(at, mask=live[:, None], other=0.0)
            other_y = tl.where((other_total > 0)[:, None], other_y, 0.0)  # never written elsewhere
        m, total, y = _joined(m, total, y, other_m, other_total, other_y)
    _finish(m, total, y, sinks_ptr, gain_ptr, z_ptr, lse_ptr, mass_ptr, batch, query,
            kv * G + member, live, n_query, kv_heads * G, D, BLOCK_D)  # fmt: skip
