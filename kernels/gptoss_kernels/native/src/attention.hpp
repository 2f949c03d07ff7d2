// Attention with grouped queries, sinks and windows; the formula is in gptoss_kernels/attention.py.
//
// A tile is some neighbouring queries of one key/value head; a *row* is one (query, head) of it.
// Scores of the whole tile are kept, so that a row has one maximum and one total. They lie as
// [row vector][key][lane]: lanes are rows, and every row sums over d_head in order, then over keys
// in the groups of seen_keys.hpp. Values are mixed with lanes along d_head. So a row's bits depend
// on nothing but its own query and the keys it sees.

using gw::KEY_GROUP;
using gw::Ranks;
using gw::SeenKeys;

constexpr float HIDDEN = -0x1.fffffep127f;  // float32's minimum: a score no query sees
constexpr int KEY_TILE = 8;                 // most keys scored at a time
constexpr int ROWS_A_TILE = 96;             // at most; whole register tiles on every ISA

struct AttentionTile {
  const GwAttention& call;
  const SeenKeys& seen;
  int64_t batch, kv_head, first, queries;    // which queries
  int64_t group = 0, rows = 0, vectors = 0;  // heads a query; rows; row vectors
  int64_t width = 0, keys = 0, step = 0;     // padded d_head; ranks in `all`; those and spare
  Ranks range[ROWS_A_TILE] = {};             // what each query sees
  Ranks all = {0, 0};                        // what any of them sees
  float *q = nullptr, *s = nullptr, *z = nullptr, *block = nullptr, *sink = nullptr;  // scratch
};

inline void fill(float* to, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

// A row's own place in s: its value for the tile's first key, the next one W floats on.
inline float* lane_of(const AttentionTile& t, int64_t row) {
  return t.s + row / Lanes::W * t.step * Lanes::W + row % Lanes::W;
}

// each(Ranks) for the part of every group that lies in `all`.
template <class Each>
inline void for_groups(const AttentionTile& t, const Each& each) {
  const int32_t* last = t.seen.start + gw::group_of(t.all.first, t.seen) + 1;
  for (int32_t first = t.all.first; first < t.all.last; first = *last++)
    each(Ranks{first, *last < t.all.last ? *last : t.all.last});
}

// ---- reading ------------------------------------------------------------------------------------

template <class T>
void read_queries(const AttentionTile& t) {
  const auto& c = t.call;
  fill(t.q, t.vectors * c.d_head * Lanes::W, 0.0f);
  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t query = t.first + row / t.group, head = t.kv_head * t.group + row % t.group;
    const T* from = static_cast<const T*>(c.q) + t.batch * c.q_step[0] + query * c.q_step[1];
    float* to = t.q + row / Lanes::W * c.d_head * Lanes::W + row % Lanes::W;
    for (int64_t i = 0; i < c.d_head; ++i) to[i * Lanes::W] = widen(from[head * c.d_head + i]);
  }
}

// The rows of one head lie far apart: fetch those of the next group while this one is used.
template <class T>
inline void fetch_ahead(const AttentionTile& t, const T* head, int64_t step, int32_t rank) {
  constexpr int64_t LINE = 64 / sizeof(T);
  if (rank + KEY_GROUP >= t.all.last) return;
  const T* row = head + t.seen.key[rank + KEY_GROUP] * step;
  for (int64_t i = 0; i < t.call.d_head; i += LINE) __builtin_prefetch(row + i);
}

// Keys or values of some ranks, [rank][width]; `spare` rows of zeros follow.
template <class T>
void read_block(const AttentionTile& t, const void* from, const int64_t* step, Ranks part,
                int64_t spare) {
  const int64_t d = t.call.d_head;
  const T* head = static_cast<const T*>(from) + t.batch * step[0] + t.kv_head * d;
  float* to = t.block;
  for (int32_t rank = part.first; rank < part.last; ++rank, to += t.width) {
    fetch_ahead(t, head, step[1], rank);
    const T* row = head + t.seen.key[rank] * step[1];
    for (int64_t i = 0; i < d; ++i) to[i] = widen(row[i]);
    fill(to + d, t.width - d, 0.0f);
  }
  fill(to, spare * t.width, 0.0f);
}

// ---- scores -------------------------------------------------------------------------------------

// R row vectors times K keys.
template <int R, int K>
void score_keys(const AttentionTile& t, const float* q, const float* k, float scale, float* s) {
  using L = Lanes;
  const int64_t d = t.call.d_head;
  L::f sum[R][K];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) sum[r][j] = L::zero();
  for (int64_t i = 0; i < d; ++i) {
    L::f row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = L::load(q + (r * d + i) * L::W);
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) {
      const L::f key = L::set1(k[j * t.width + i]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][j] = L::fma(row[r], key, sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j)
      L::store(s + (r * t.step + j) * L::W, L::mul(sum[r][j], L::set1(scale)));
}

template <int R, int K>
void score_vectors(const AttentionTile& t, int64_t vector, int64_t at, int64_t n, float scale) {
  const float* q = t.q + vector * t.call.d_head * Lanes::W;
  float* s = t.s + (vector * t.step + at) * Lanes::W;
  for (int64_t j = 0; j < n; j += K)
    score_keys<R, K>(t, q, t.block + j * t.width, scale, s + j * Lanes::W);
}

inline void hide(const AttentionTile& t) {
  for (int64_t row = 0; row < t.rows; ++row) {
    const Ranks seen = t.range[row / t.group];
    float* s = lane_of(t, row);
    for (int64_t j = 0; j < seen.first - t.all.first; ++j) s[j * Lanes::W] = HIDDEN;
    const int64_t behind = seen.last > t.all.first ? seen.last - t.all.first : 0;
    for (int64_t j = behind; j < t.keys; ++j) s[j * Lanes::W] = HIDDEN;
  }
}

template <class T>
void score(const AttentionTile& t) {
  const float scale = 1.0f / __builtin_sqrtf(float(t.call.d_head));
  read_queries<T>(t);
  for_groups(t, [&](Ranks part) {
    const int64_t at = part.first - t.all.first, n = part.last - part.first;
    read_block<T>(t, t.call.k, t.call.k_step, part, KEY_TILE - 1);
    int64_t vector = 0;
    for (; vector + 3 <= t.vectors; vector += 3) score_vectors<3, 4>(t, vector, at, n, scale);
    if (t.vectors - vector == 2) score_vectors<2, 4>(t, vector, at, n, scale);
    if (t.vectors - vector == 1) score_vectors<1, KEY_TILE>(t, vector, at, n, scale);
  });
  hide(t);
}

// ---- softmax ------------------------------------------------------------------------------------

// exp(x) for x <= 0, as in exp.hpp but 0 where that would be below 2^-126: n is -127 there, whose
// power of two comes out as 0. Two thirds of the instructions.
inline Lanes::f exp_of_negative(Lanes::f x) {
  using L = Lanes;
  const L::f bounded = L::max(L::set1(-88.0f), x);  // in this order NaN stays NaN
  const L::f n = L::round(L::mul(bounded, L::set1(1.44269504f)));
  L::f r = L::fma(n, L::set1(-0.693359375f), bounded);
  r = L::fma(n, L::set1(2.12194440e-4f), r);
  L::f q = L::fma(L::set1(0x1.6a2344p-10f), r, L::set1(0x1.123a78p-7f));
  q = L::fma(q, r, L::set1(0x1.5558f6p-5f));
  q = L::fma(q, r, L::set1(0x1.555490p-3f));
  q = L::fma(q, r, L::set1(0x1.fffffcp-2f));
  const L::f y = L::add(L::fma(L::mul(r, r), q, r), L::set1(1.0f));
  return L::mul(y, L::pow2(n));
}

// Scores less their row's maximum become weights; gives the total a row.
inline Lanes::f exponentiate(const AttentionTile& t, float* s, Lanes::f top) {
  using L = Lanes;
  L::f total = L::zero();
  for_groups(t, [&](Ranks part) {
    L::f sum = L::zero();
    for (int64_t j = part.first - t.all.first; j < part.last - t.all.first; ++j) {
      const L::f weight = exp_of_negative(L::sub(L::load(s + j * L::W), top));
      L::store(s + j * L::W, weight);
      sum = L::add(sum, weight);
    }
    total = L::add(total, sum);
  });
  return total;
}

// Scores become probabilities; `sink` takes what each row's sink absorbs.
inline void soften(const AttentionTile& t) {
  using L = Lanes;
  for (int64_t vector = 0; vector < t.vectors; ++vector) {
    float* s = t.s + vector * t.step * L::W;
    const L::f sink = L::load(t.sink + vector * L::W);
    L::f top = L::max(sink, L::set1(HIDDEN));
    for (int64_t j = 0; j < t.keys; ++j) top = L::max(top, L::load(s + j * L::W));
    const L::f total = exponentiate(t, s, top), absorbed = exp_of_negative(L::sub(sink, top));
    const L::f share = L::div(L::set1(1.0f), L::add(total, absorbed));
    for (int64_t j = 0; j < t.keys; ++j)
      L::store(s + j * L::W, L::mul(L::load(s + j * L::W), share));
    L::store(t.sink + vector * L::W, L::mul(absorbed, share));
  }
}

// ---- mixing -------------------------------------------------------------------------------------

// R rows times V vectors of d_head: the sum over one group of keys joins z.
template <int R, int V>
void mix_keys(const float* const* p, const float* v, int64_t n, int64_t width, float* z) {
  using L = Lanes;
  L::f sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < V; ++c) sum[r][c] = L::zero();
  for (int64_t j = 0; j < n; ++j) {
    L::f value[V];
#pragma GCC unroll 8
    for (int c = 0; c < V; ++c) value[c] = L::load(v + j * width + c * L::W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const L::f weight = L::set1(p[r][j * L::W]);
#pragma GCC unroll 8
      for (int c = 0; c < V; ++c) sum[r][c] = L::fma(weight, value[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < V; ++c) {
      float* to = z + r * width + c * L::W;
      L::store(to, L::add(L::load(to), sum[r][c]));
    }
}

template <int R>
void mix_rows(const AttentionTile& t, int64_t row, Ranks part, const float* v) {
  constexpr int W = Lanes::W, V = W == 8 ? 3 : 4;  // AVX2 has 16 registers, the others 32
  const int64_t n = part.last - part.first;
  const float* p[R];
  for (int r = 0; r < R; ++r) p[r] = lane_of(t, row + r) + (part.first - t.all.first) * W;
  float* z = t.z + row * t.width;
  int64_t i = 0;
  for (; i + V * W <= t.width; i += V * W) mix_keys<R, V>(p, v + i, n, t.width, z + i);
  for (; i + 2 * W <= t.width; i += 2 * W) mix_keys<R, 2>(p, v + i, n, t.width, z + i);
  if (i < t.width) mix_keys<R, 1>(p, v + i, n, t.width, z + i);
}

template <class T>
void mix_values(const AttentionTile& t) {
  fill(t.z, t.rows * t.width, 0.0f);
  for_groups(t, [&](Ranks group) {
    read_block<T>(t, t.call.v, t.call.v_step, group, 0);
    for (int64_t query = 0; query < t.queries; ++query) {
      const Ranks seen = t.range[query];
      const Ranks part{seen.first > group.first ? seen.first : group.first,
                       seen.last < group.last ? seen.last : group.last};
      if (part.first >= part.last) continue;
      const float* v = t.block + (part.first - group.first) * t.width;
      int64_t row = query * t.group, last = row + t.group;
      for (; row + 4 <= last; row += 4) mix_rows<4>(t, row, part, v);
      for (; row < last; ++row) mix_rows<1>(t, row, part, v);
    }
  });
}
