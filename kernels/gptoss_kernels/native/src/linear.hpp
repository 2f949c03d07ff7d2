// x Wᵀ for packed rows of x.
//
// Every element: for each chunk of its weight row, in order,
//   MXFP4      p = w0 x0; p += wv xv for the other 7 vectors; acc += p · scale
//   others     acc += wv xv for each vector
// in every lane, then the tree of `hsum`. A few rows (GEMV) decode into registers; many (GEMM) decode
// some weight rows into L1 and run tiles of registers over them. Both do the same arithmetic.

constexpr int GROUP = 12;    // weight rows decoded together
constexpr int DEPTH = 256;   // elements of each
constexpr int TILE_X = 3, TILE_W = 4;
constexpr int FEW = 8;       // x rows for which weights are not decoded into memory
constexpr int PANEL = 60;    // x rows that pass over a decoded group
constexpr int BLOCK = 48;    // weight rows a thread takes at a time
constexpr int64_t SLAB = 1024;  // x rows packed at a time

// sum of `n` products, from vector 0 on or added to `sum`.
inline f products(const f w[], const float* x, int n, bool first, f sum) {
#pragma GCC unroll 8
  for (int v = 0; v < n; ++v) {
    f a = Lanes::load(x + v * W);
    sum = first && v == 0 ? Lanes::mul(w[v], a) : Lanes::fma(w[v], a, sum);
  }
  return sum;
}

// acc[r][i] += chunk c of R weight rows times M rows of x; R and M are small enough for registers.
template <class F, int R, int M>
inline void step(const typename F::Row row[], int64_t c, const float* const x[], f acc[][M]) {
  constexpr int HALF = F::SCALED ? 4 : F::V;
  f w[R][HALF], p[R][M];
#pragma GCC unroll 2
  for (int at = 0; at < F::V; at += HALF) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) F::load_part(row[r], c, at, w[r]);
#pragma GCC unroll 4
    for (int v = 0; v < HALF; ++v)
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        f a = Lanes::load(x[i] + c * F::CHUNK + (at + v) * W);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          f& sum = F::SCALED ? p[r][i] : acc[r][i];
          sum = F::SCALED && at + v == 0 ? Lanes::mul(w[r][v], a) : Lanes::fma(w[r][v], a, sum);
        }
      }
  }
  if constexpr (F::SCALED) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      f scale = F::scale(row[r], c);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) acc[r][i] = Lanes::fma(p[r][i], scale, acc[r][i]);
    }
  }
}

// The last chunk of a row where it is not whole.
template <class F>
inline f last_step(const F& weight, int64_t row, int64_t c, const float* x, f acc) {
  f w[F::V], scale = any_chunk(weight, row, c, w);
  f p = products(w, x + c * F::CHUNK, F::V, F::SCALED, acc);
  return F::SCALED ? Lanes::fma(p, scale, acc) : p;
}

// R weight rows against M rows of x, straight from memory; out[i * BLOCK + r].
template <class F, int R, int M>
inline void dots(const F& weight, int64_t first, const float* const rows[], float* out) {
  constexpr int PAIR = R > 1 && M < 4 ? 2 : 1;
  const float* x[M];
  f acc[R][M];
  typename F::Row row[R];
  for (int i = 0; i < M; ++i) x[i] = rows[i];
  for (int r = 0; r < R; ++r) {
    row[r] = weight.row(first + r);
    for (int i = 0; i < M; ++i) acc[r][i] = Lanes::zero();
  }
  int64_t whole = weight.inner / F::CHUNK, ahead = F::at(weight.row(2 * R), 0) - weight.data;
  for (int64_t c = 0; c < whole; ++c) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) __builtin_prefetch(F::at(row[r], c) + ahead);
#pragma GCC unroll 4
    for (int r = 0; r < R; r += PAIR) step<F, PAIR, M>(row + r, c, x, acc + r);
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < M; ++i) {
      if (weight.inner % F::CHUNK) acc[r][i] = last_step(weight, first + r, whole, x[i], acc[r][i]);
      out[i * BLOCK + r] = Lanes::hsum(acc[r][i]);
    }
}

template <class F, int M>
__attribute__((noinline)) void gemv(const F& weight, int64_t row, int n, const float* const x[],
                                    float* out) {
  constexpr int R = M == 1 ? 4 : 2;
  int j = 0;
  for (; j + R <= n; j += R) dots<F, R, M>(weight, row + j, x, out + j);
  for (; j < n; ++j) dots<F, 1, M>(weight, row + j, x, out + j);
}

// Up to GROUP weight rows, DEPTH elements of each, as fp32 in the order of packed x.
template <class F>
struct Decoded {
  static constexpr int CHUNKS = DEPTH / F::CHUNK;
  alignas(64) float w[GROUP][DEPTH];
  alignas(64) float scale[GROUP][F::SCALED ? CHUNKS * W : W];

  // What is decoded next is on its way from memory meanwhile.
  static void fetch_ahead(typename F::Row row, int64_t chunk) {
    for (int b = 0; b < CHUNKS * F::BYTES; b += 64) __builtin_prefetch(F::at(row, chunk) + b);
  }

  void fill(const F& weight, int64_t row, int n, int64_t chunk, int count) {
    f out[F::V];
    for (int r = 0; r < n; ++r) fetch_ahead(weight.row(row + r), chunk + CHUNKS);
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < count; ++c) {
        f factor = any_chunk(weight, row + r, chunk + c, out);
        for (int v = 0; v < F::V; ++v) Lanes::store(w[r] + c * F::CHUNK + v * W, out[v]);
        if constexpr (F::SCALED) Lanes::store(scale[r] + c * W, factor);
      }
  }
};

// sum[X][TILE_W] = or += V vectors of TILE_W decoded rows times those of X rows of x.
template <class F, int X>
inline void outer_products(const float* const w[], const float* const x[], int at,
                           f sum[][TILE_W]) {
#pragma GCC unroll 8
  for (int v = 0; v < F::V; ++v, at += W) {
    f a[TILE_W];
    for (int j = 0; j < TILE_W; ++j) a[j] = Lanes::load(w[j] + at);
    for (int i = 0; i < X; ++i) {
      f b = Lanes::load(x[i] + at);
      for (int j = 0; j < TILE_W; ++j)
        sum[i][j] = F::SCALED && v == 0 ? Lanes::mul(a[j], b) : Lanes::fma(a[j], b, sum[i][j]);
    }
  }
}

// Chunk c of TILE_W scaled rows times X rows of x joins acc, which FRESH takes for zeros.
template <class F, int X, bool FRESH>
inline void scaled_chunk(const Decoded<F>& d, int row, int c, const float* const w[],
                         const float* const x[], float* acc) {
  f sum[X][TILE_W];
  for (int i = 0; i < X; ++i)
    for (int j = 0; j < TILE_W; ++j) sum[i][j] = Lanes::zero();
  outer_products<F, X>(w, x, c * F::CHUNK, sum);
  for (int j = 0; j < TILE_W; ++j) {
    f scale = Lanes::load(d.scale[row + j] + c * W);
    for (int i = 0; i < X; ++i) {
      float* to = acc + (i * TILE_W + j) * W;
      Lanes::store(to, Lanes::fma(sum[i][j], scale, FRESH ? Lanes::zero() : Lanes::load(to)));
    }
  }
  asm volatile("" ::: "memory");  // sums of chunks stay in memory: registers are for products
}

// acc[X][TILE_W] += the decoded chunks of TILE_W weight rows times X rows of x.
template <class F, int X, bool FRESH>
inline void tile(const Decoded<F>& d, int row, int count, const float* const x[], float* acc) {
  const float* w[TILE_W];
  for (int j = 0; j < TILE_W; ++j) w[j] = d.w[row + j];
  if constexpr (F::SCALED) {
    scaled_chunk<F, X, FRESH>(d, row, 0, w, x, acc);
    for (int c = 1; c < count; ++c) scaled_chunk<F, X, false>(d, row, c, w, x, acc);
  } else {
    f sum[X][TILE_W];
    for (int i = 0; i < X; ++i)
      for (int j = 0; j < TILE_W; ++j)
        sum[i][j] = FRESH ? Lanes::zero() : Lanes::load(acc + (i * TILE_W + j) * W);
    for (int c = 0; c < count; ++c) outer_products<F, X>(w, x, c * F::CHUNK, sum);
    for (int i = 0; i < X; ++i)
      for (int j = 0; j < TILE_W; ++j) Lanes::store(acc + (i * TILE_W + j) * W, sum[i][j]);
  }
}

template <class F, bool FRESH>
inline void any_tile(const Decoded<F>& d, int row, int count, const float* const x[], int left,
                     float* acc) {
  if (left >= 3) tile<F, 3, FRESH>(d, row, count, x, acc);
  else if (left == 2) tile<F, 2, FRESH>(d, row, count, x, acc);
  else tile<F, 1, FRESH>(d, row, count, x, acc);
}

// Lanes of a tile added up; what lies beyond the last weight row is 0.
inline void finish(const float* acc, int left, float* out) {
  for (int i = 0; i < TILE_X && i < left; ++i, acc += TILE_W * W, out += BLOCK) {
    f sum[TILE_W];
    for (int j = 0; j < TILE_W; ++j) sum[j] = Lanes::load(acc + j * W);
    Lanes::hsum4(sum, out);
  }
}

// Rows that one decoding covers: a tile's sums come, are added up and are done with.
template <class F>
inline void short_gemm(const Decoded<F>& d, int n, int count, const float* const x[], int m,
                       float* out) {
  alignas(64) float acc[TILE_X * TILE_W * W];
  for (int i = 0; i < m; i += TILE_X)
    for (int j = 0; j < n; j += TILE_W) {
      any_tile<F, true>(d, j, count, x + i, m - i, acc);
      finish(acc, m - i, out + i * BLOCK + j);
    }
}

// Longer rows: sums of all tiles wait for the next elements.
template <class F>
inline void long_gemm(Decoded<F>& d, const F& weight, int64_t row, int n, const float* const x[],
                      int m, float* out) {
  alignas(64) float acc[PANEL * GROUP * W];
  memset(acc, 0, sizeof(float) * size_t((m + TILE_X - 1) / TILE_X * TILE_X * GROUP * W));
  for (int64_t c = 0, all = chunks(weight); c < all; c += Decoded<F>::CHUNKS) {
    int count = int(all - c < Decoded<F>::CHUNKS ? all - c : Decoded<F>::CHUNKS);
    d.fill(weight, row, n, c, count);
    for (int i = 0; i < m; i += TILE_X) {
      const float* at[TILE_X];
      for (int r = 0; r < TILE_X && r < m - i; ++r) at[r] = x[i + r] + c * F::CHUNK;
      for (int j = 0; j < n; j += TILE_W)
        any_tile<F, false>(d, j, count, at, m - i, acc + (i * GROUP + j * TILE_X) * W);
    }
  }
  for (int i = 0; i < m; i += TILE_X)
    for (int j = 0; j < n; j += TILE_W)
      finish(acc + (i * GROUP + j * TILE_X) * W, m - i, out + i * BLOCK + j);
}

// out[i][j] for m <= PANEL rows of x and n <= GROUP weight rows, zeros up to a whole tile.
template <class F>
__attribute__((noinline)) void gemm(const F& weight, int64_t row, int n, const float* const x[],
                                    int m, float* out) {
  Decoded<F> d;
  for (int r = n; r < (n + TILE_W - 1) / TILE_W * TILE_W; ++r) {
    memset(d.w[r], 0, sizeof d.w[r]);
    memset(d.scale[r], 0, sizeof d.scale[r]);
  }
  const int64_t all = chunks(weight);
  if (all > Decoded<F>::CHUNKS) return long_gemm(d, weight, row, n, x, m, out);
  d.fill(weight, row, n, 0, int(all));
  short_gemm(d, n, int(all), x, m, out);
}

// The same for m <= FEW rows of x: weights come apart in registers, once for up to four rows.
template <class F>
inline void few(const F& weight, int64_t row, int n, const float* const x[], int m, float* out) {
  for (int i = 0, now; i < m; i += now) {
    now = m - i > 4 ? (m - i + 1) / 2 : m - i;
    float* to = out + i * BLOCK;
    if (now == 1) gemv<F, 1>(weight, row, n, x + i, to);
    else if (now == 2) gemv<F, 2>(weight, row, n, x + i, to);
    else if (now == 3) gemv<F, 3>(weight, row, n, x + i, to);
    else gemv<F, 4>(weight, row, n, x + i, to);
  }
}

// out[i][j] for m <= PANEL rows of x and n <= BLOCK weight rows; out rows BLOCK apart.
template <class F>
inline void panel(const F& weight, int64_t row, int n, const float* const x[], int m, float* out) {
  if (m <= FEW) return few(weight, row, n, x, m, out);
  for (int j = 0; j < n; j += GROUP)
    gemm(weight, row + j, n - j < GROUP ? n - j : GROUP, x, m, out + j);
}

// n <= BLOCK weight rows against rows [first, last) of a packed x, in their order or that of
// `index`. sink(r, values) gets the n results of row r.
template <class F, class Sink>
inline void project(const F& weight, int64_t row, int n, const float* x, const int64_t* index,
                    int64_t first, int64_t last, const Sink& sink) {
  int64_t stride = row_floats(weight);
  float out[PANEL * BLOCK];
  const float* at[PANEL];
  for (int64_t r = first; r < last; r += PANEL) {
    int m = int(last - r < PANEL ? last - r : PANEL);
    for (int i = 0; i < m; ++i) at[i] = x + (index ? index[r + i] : r + i) * stride;
    if constexpr (F::PAIRS) panel_of_either(weight, row, n, at, m, out, BLOCK);
    else panel(weight, row, n, at, m, out);
    for (int i = 0; i < m; ++i) sink(r + i, out + i * BLOCK);
  }
}

inline void add(float* y, const float* x, int n) {
  for (int j = 0; j < n; ++j) y[j] += x[j];
}

struct Bias {
  const void* data;
  int32_t dtype;
  // n of them, widened.
  void read(int64_t first, int n, float* to) const {
    for (int j = 0; j < n; ++j) to[j] = data ? element(data, dtype, first + j) : 0.0f;
  }
};

// Weight rows a job, of `matrices` alike. One row of x is memory-bound and fetches ahead: several
// blocks a job, so that what is fetched is mostly the thread's own.
inline int64_t job_rows(int64_t rows, int64_t outer, int64_t matrices = 1) {
  int64_t jobs = gw::threads() > 1 ? 4 * gw::threads() : 1;
  int64_t share = (outer * matrices + jobs - 1) / jobs;
  int64_t most = rows == 1 ? 8 * BLOCK : BLOCK;
  int64_t n = (share + GROUP - 1) / GROUP * GROUP;
  return n < most ? n : most;
}

// each(row, n) for the weight rows of a job, a block at a time.
template <class Each>
inline void for_blocks(int64_t row, int64_t last, const Each& each) {
  for (; row < last; row += BLOCK) each(row, int(last - row < BLOCK ? last - row : BLOCK));
}

template <class F>
inline int32_t linear_rows(const F& weight, const void* x, int32_t x_dtype, int64_t rows,
                           int64_t outer, Bias bias, void* out, int32_t out_dtype) {
  int64_t stride = row_floats(weight), most = rows < SLAB ? rows : SLAB;
  float* packed = static_cast<float*>(gw::scratch(size_t(most * stride) * sizeof(float)));
  if (!packed) return 1;
  for (int64_t first = 0; first < rows; first += SLAB) {
    int64_t count = rows - first < SLAB ? rows - first : SLAB;
    pack_rows(weight, offset(x, x_dtype, first * weight.inner), x_dtype, count, packed);
    int64_t step = job_rows(count, outer);
    parallel((outer + step - 1) / step, [&](int64_t job, int) {
      int64_t end = job * step + step < outer ? job * step + step : outer;
      for_blocks(job * step, end, [&](int64_t row, int n) {
        float added[BLOCK];
        bias.read(row, n, added);
        project(weight, row, n, packed, nullptr, 0, count, [&](int64_t r, float* y) {
          if (bias.data) add(y, added, n);
          put(offset(out, out_dtype, (first + r) * outer + row), out_dtype, y, n);
        });
      });
    });
  }
  return 0;
}

inline int32_t linear(const void* x, int32_t x_dtype, int64_t rows, const void* weight,
                      int32_t weight_dtype, int64_t outer, int64_t inner, const void* bias,
                      int32_t bias_dtype, void* out, int32_t out_dtype) {
  const uint8_t* data = static_cast<const uint8_t*>(weight);
  Bias b{bias, bias_dtype};
  if (weight_dtype == GW_F32)
    return linear_rows(Fp32{data, inner}, x, x_dtype, rows, outer, b, out, out_dtype);
  return linear_rows(Bf16{data, inner}, x, x_dtype, rows, outer, b, out, out_dtype);
}

inline int32_t packed_linear(const void* x, int32_t x_dtype, int64_t rows, const void* blocks,
                             const void* scales, int64_t outer, int64_t inner, float* out) {
  Mxfp4 w{static_cast<const uint8_t*>(blocks), inner, static_cast<const uint8_t*>(scales)};
  return linear_rows(w, x, x_dtype, rows, outer, Bias{nullptr, GW_F32}, out, GW_F32);
}
