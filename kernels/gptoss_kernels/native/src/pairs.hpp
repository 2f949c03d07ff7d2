// x Wᵀ by products of bfloat16 pairs, for lanes that have them (`Lanes::PAIRS`).
//
// A row of x is packed as bfloat16 if it is made of them, however it was stored, so that its bits
// depend on its values alone. All other rows go the way of linear.hpp: fp32 as two bfloat16 terms
// misses 2e-6, and as three takes 12 dots where fp32 takes 8 fma of the same rate.
//
// Every element: for each chunk of its weight row, in order,
//   MXFP4      p = pairs of vector 0; p += those of the other 3; acc += p · scale
//   bfloat16   acc += pairs
// in every lane, then the tree of `hsum`; the same for one row and for many.
//
// `dot` takes denormals for 0. In MXFP4 there are none: x is 0 or at least SMALLEST, so products
// and their sums are multiples of 2^-125, and `scale` multiplies in fp32. A bfloat16 weight below
// 2^-126 does count as 0, and so does a sum below: an error of at most 2^-126 (inner + Σ|x|).

using words = Lanes::words;
constexpr int PAIR_X = 4;        // rows of x in a tile
constexpr int PAIR_FEW = 8;      // rows of x for which weights are not unpacked into memory
constexpr int PAIR_GROUP = 12;   // weight rows unpacked together
constexpr int PAIR_DEPTH = 512;  // elements of each
constexpr int PAIR_PANEL = 64;   // rows of x that pass over an unpacked group
constexpr uint32_t SMALLEST = (127u - 117u) << 23;  // bits of 2^-117

static_assert(Mxfp4::BYTES == 64 && Bf16::BYTES == 64, "a chunk is one vector of words");
template <class F>
constexpr int VECTORS = F::CHUNK / (2 * W);
template <class F>
constexpr int PAIR_W = F::SCALED ? 3 : 6;  // weight rows in a tile; scaled ones need two sums

// Whether x is made of zeros and of bfloat16 not below SMALLEST.
template <class T>
inline bool made_of_pairs(const uint8_t* x, int64_t n) {
  uint32_t low = 0, small = 0;
  for (int64_t i = 0; i < n; ++i) {
    T a;
    memcpy(&a, x + sizeof(T) * size_t(i), sizeof(T));
    const uint32_t bits = uint32_t(a) << (32 - 8 * sizeof(T));
    low |= bits & 0xffff;
    small |= (bits & 0x7fffffff) - 1 < SMALLEST - 1;
  }
  return !low && !small;
}

// One row of x as bfloat16 in the order of the unpacked weights, zero beyond.
template <class F, class T>
inline void pack_pairs(const uint8_t* x, int64_t inner, uint16_t* out) {
  for (int64_t k = 0; k < inner; k += F::CHUNK) {
    T chunk[F::CHUNK] = {};
    const int64_t n = inner - k < F::CHUNK ? inner - k : F::CHUNK;
    memcpy(chunk, x + sizeof(T) * size_t(k), sizeof(T) * size_t(n));
    for (int v = 0; v < VECTORS<F>; ++v)
      for (int i = 0; i < 2 * W; ++i) {
        const T a = chunk[F::SCALED ? Lanes::mxfp4_word_place(v, i) : i];
        *out++ = uint16_t(a >> (8 * sizeof(T) - 16));
      }
  }
}

// One row of x behind W floats of which the first says whether it is packed as bfloat16.
template <class F>
inline void pack_either(const F& w, const void* x, int32_t dtype, float* out) {
  const uint8_t* from = static_cast<const uint8_t*>(x);
  const bool wide = dtype == GW_F32;
  const bool paired = wide ? made_of_pairs<uint32_t>(from, w.inner)
                           : made_of_pairs<uint16_t>(from, w.inner);
  out[0] = paired;
  uint16_t* to = reinterpret_cast<uint16_t*>(out + W);
  if (!paired) pack(w, x, dtype, out + W);
  else if (wide) pack_pairs<F, uint32_t>(from, w.inner, to);
  else pack_pairs<F, uint16_t>(from, w.inner, to);
}

// Chunk c of a row as bfloat16, n elements of it.
template <class F>
inline void unpack_words(typename F::Row row, int64_t c, int64_t n, words w[]) {
  const uint8_t* at = F::at(row, c);
  const words stored = n < F::CHUNK ? Lanes::load_words(at, int(n * F::BYTES / F::CHUNK))
                                    : Lanes::load_words(at);
  if constexpr (F::SCALED) Lanes::mxfp4_words(stored, w);
  else w[0] = stored;
}

// The factors of chunk c, n elements of it; formats without factors ignore them.
template <class F>
inline f factors(typename F::Row row, int64_t c, int64_t n) {
  if constexpr (F::SCALED) {
    if (n >= F::CHUNK) return F::scale(row, c);
    uint8_t some[F::BLOCKS] = {};  // by hand: no call of memcpy for three bytes a row
#pragma GCC unroll 4
    for (int b = 0; b < F::BLOCKS - 1; ++b)
      if (32 * b < n) some[b] = row.factors[c * F::BLOCKS + b];
    return Lanes::scales(some);
  } else {
    return Lanes::zero();
  }
}

// acc[X] += n elements of chunk c of a weight row times X rows of x, already at that chunk.
template <class F, int X>
inline void pair_step(typename F::Row row, int64_t c, int64_t n, const uint16_t* const x[],
                      f acc[X]) {
  words w[VECTORS<F>];
  unpack_words<F>(row, c, n, w);
  const f scale = factors<F>(row, c, n);
#pragma GCC unroll 4
  for (int i = 0; i < X; ++i) {
    f p = F::SCALED ? Lanes::zero() : acc[i];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS<F>; ++v)
      p = Lanes::dot(w[v], Lanes::load_words(x[i] + c * F::CHUNK + v * 2 * W), p);
    acc[i] = F::SCALED ? Lanes::fma(p, scale, acc[i]) : p;
  }
}

// R weight rows against X rows of x, straight from memory.
template <class F, int R, int X>
inline void pair_dots(const F& weight, int64_t first, const uint16_t* const x[], float* out,
                      int step) {
  f acc[R][X];
  typename F::Row row[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    row[r] = weight.row(first + r);
#pragma GCC unroll 4
    for (int i = 0; i < X; ++i) acc[r][i] = Lanes::zero();
  }
  const int64_t whole = weight.inner / F::CHUNK, rest = weight.inner % F::CHUNK;
  const int64_t ahead = F::at(weight.row(2 * R), 0) - weight.data;
  for (int64_t c = 0; c < whole; ++c) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(F::at(row[r], c) + ahead);
      pair_step<F, X>(row[r], c, F::CHUNK, x, acc[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (rest) pair_step<F, X>(row[r], whole, rest, x, acc[r]);
#pragma GCC unroll 4
    for (int i = 0; i < X; ++i) out[i * step + r] = Lanes::hsum(acc[r][i]);
  }
}

template <class F, int X>
__attribute__((noinline)) void pair_gemv(const F& weight, int64_t row, int n,
                                         const uint16_t* const x[], float* out, int step) {
  constexpr int R = X == 1 ? 4 : 2;
  int i = 0;
  for (; i + R <= n; i += R) pair_dots<F, R, X>(weight, row + i, x, out + i, step);
  for (; i < n; ++i) pair_dots<F, 1, X>(weight, row + i, x, out + i, step);
}

// Up to PAIR_GROUP weight rows, PAIR_DEPTH elements of each, as bfloat16 in the order of packed x.
template <class F>
struct Unpacked {
  static constexpr int CHUNKS = PAIR_DEPTH / F::CHUNK;
  alignas(64) uint16_t w[PAIR_GROUP][PAIR_DEPTH];
  alignas(64) float scale[PAIR_GROUP][F::SCALED ? CHUNKS * W : W];

  void fill(const F& weight, int64_t row, int n, int64_t chunk, int count) {
    words out[VECTORS<F>];
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < count; ++c) {
        const typename F::Row from = weight.row(row + r);
        const int64_t left = weight.inner - (chunk + c) * F::CHUNK;
        unpack_words<F>(from, chunk + c, left, out);
        memcpy(w[r] + c * F::CHUNK, out, sizeof out);
        if constexpr (F::SCALED)
          Lanes::store(scale[r] + c * W, factors<F>(from, chunk + c, left));
      }
  }
};

// acc[X][PAIR_W] += `count` unpacked chunks of PAIR_W weight rows times those of X rows of x; acc
// holds PAIR_GROUP vectors a row.
template <class F, int X>
inline void pair_tile(const Unpacked<F>& d, int row, int count, const uint16_t* const x[],
                      float* acc) {
  constexpr int N = PAIR_W<F>;
  f sum[X][N];
  for (int i = 0; i < X; ++i)
    for (int j = 0; j < N; ++j) sum[i][j] = Lanes::load(acc + (i * PAIR_GROUP + j) * W);
  for (int c = 0; c < count; ++c) {
    f p[X][N];
    for (int i = 0; i < X; ++i)
      for (int j = 0; j < N; ++j) p[i][j] = F::SCALED ? Lanes::zero() : sum[i][j];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS<F>; ++v) {
      const int at = c * F::CHUNK + v * 2 * W;
      words a[N];
      for (int j = 0; j < N; ++j) a[j] = Lanes::load_words(d.w[row + j] + at);
      for (int i = 0; i < X; ++i) {
        const words b = Lanes::load_words(x[i] + at);
        for (int j = 0; j < N; ++j) p[i][j] = Lanes::dot(a[j], b, p[i][j]);
      }
    }
    for (int j = 0; j < N; ++j) {
      if constexpr (F::SCALED) {
        const f scale = Lanes::load(d.scale[row + j] + c * W);
        for (int i = 0; i < X; ++i) sum[i][j] = Lanes::fma(p[i][j], scale, sum[i][j]);
      } else {
        for (int i = 0; i < X; ++i) sum[i][j] = p[i][j];
      }
    }
  }
  for (int i = 0; i < X; ++i)
    for (int j = 0; j < N; ++j) Lanes::store(acc + (i * PAIR_GROUP + j) * W, sum[i][j]);
}

// One unpacked group against a panel of m rows of x, from element k on.
template <class F>
inline void pair_sweep(const Unpacked<F>& d, int n, int count, const uint16_t* const x[], int m,
                       int64_t k, float* acc) {
  for (int i = 0; i < m; i += PAIR_X) {
    const uint16_t* at[PAIR_X];
    const int left = m - i < PAIR_X ? m - i : PAIR_X;
    for (int j = 0; j < left; ++j) at[j] = x[i + j] + k;
    for (int j = 0; j < n; j += PAIR_W<F>) {
      float* to = acc + (i * PAIR_GROUP + j) * W;
      if (left == 4) pair_tile<F, 4>(d, j, count, at, to);
      else if (left == 3) pair_tile<F, 3>(d, j, count, at, to);
      else if (left == 2) pair_tile<F, 2>(d, j, count, at, to);
      else pair_tile<F, 1>(d, j, count, at, to);
    }
  }
}

// out[i][j] for m <= PAIR_PANEL rows of x and n <= PAIR_GROUP weight rows; out rows `step` apart.
template <class F>
__attribute__((noinline)) void pair_gemm(const F& weight, int64_t row, int n,
                                         const uint16_t* const x[], int m, float* out, int step) {
  Unpacked<F> d;
  alignas(64) float acc[PAIR_PANEL * PAIR_GROUP * W];
  memset(acc, 0, sizeof(float) * size_t(m * PAIR_GROUP * W));
  for (int r = n; r < PAIR_GROUP; ++r) memset(d.w[r], 0, sizeof d.w[r]);
  for (int r = n; r < PAIR_GROUP; ++r) memset(d.scale[r], 0, sizeof d.scale[r]);
  for (int64_t c = 0, all = chunks(weight); c < all; c += Unpacked<F>::CHUNKS) {
    const int count = int(all - c < Unpacked<F>::CHUNKS ? all - c : Unpacked<F>::CHUNKS);
    d.fill(weight, row, n, c, count);
    pair_sweep(d, n, count, x, m, c * F::CHUNK, acc);
  }
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j)
      out[i * step + j] = Lanes::hsum(Lanes::load(acc + (i * PAIR_GROUP + j) * W));
}

// The same for any n and m <= PAIR_FEW: weights are unpacked in registers, once for up to 4 rows.
template <class F>
inline void pair_few(const F& weight, int64_t row, int n, const uint16_t* const x[], int m,
                     float* out, int step) {
  for (int i = 0, now; i < m; i += now) {
    now = m - i > 4 ? (m - i + 1) / 2 : m - i;
    float* to = out + i * step;
    if (now == 1) pair_gemv<F, 1>(weight, row, n, x + i, to, step);
    else if (now == 2) pair_gemv<F, 2>(weight, row, n, x + i, to, step);
    else if (now == 3) pair_gemv<F, 3>(weight, row, n, x + i, to, step);
    else pair_gemv<F, 4>(weight, row, n, x + i, to, step);
  }
}

template <class F>
inline void pair_panel(const F& weight, int64_t row, int n, const uint16_t* const x[], int m,
                       float* out, int step) {
  if (m <= PAIR_FEW) return pair_few(weight, row, n, x, m, out, step);
  for (int j = 0; j < n; j += PAIR_GROUP)
    pair_gemm(weight, row + j, n - j < PAIR_GROUP ? n - j : PAIR_GROUP, x, m, out + j, step);
}

// out[i][j] for m packed rows of x, each in its way, and n weight rows; out rows `step` apart.
template <class F>
inline void panel_of_either(const F& weight, int64_t row, int n, const float* const x[], int m,
                            float* out, int step) {
  for (int i = 0, next; i < m; i = next) {
    const float* wide[PAIR_PANEL];
    const uint16_t* paired[PAIR_PANEL];
    const bool pairs = x[i][0] != 0;
    for (next = i; next < m && next - i < PAIR_PANEL && (x[next][0] != 0) == pairs; ++next) {
      wide[next - i] = x[next] + W;
      paired[next - i] = reinterpret_cast<const uint16_t*>(x[next] + W);
    }
    if (pairs) pair_panel(weight, row, n, paired, next - i, out + i * step, step);
    else panel(weight, row, n, wide, next - i, out + i * step);
  }
}
