// grad W: the gradient with respect to x. Lanes lie along `inner`; each sums over `outer` in order.

constexpr int SPAN = 256;     // elements of `inner` a thread takes at a time
constexpr int OUTER = 16;     // weight rows decoded together
constexpr int TILE_G = 6, TILE_K = 2;
constexpr int ROWS = 48;      // rows of grad that pass over them; a multiple of TILE_G

// Scaled weights [n][SPAN] of rows [row, row + n), chunks [chunk, chunk + count).
template <class F>
inline void decode(const F& weight, int64_t row, int n, int64_t chunk, int count,
                   float out[][SPAN]) {
  f w[F::V];
  for (int r = 0; r < n; ++r)
    for (int c = 0; c < count; ++c) {
      f scale = any_chunk(weight, row + r, chunk + c, w);
      for (int v = 0; v < F::V; ++v) {
        if constexpr (F::SCALED) w[v] = Lanes::mul(w[v], scale);
        Lanes::store(out[r] + c * F::CHUNK + v * W, w[v]);
      }
    }
}

// acc[G][TILE_K vectors] += grad[G][n] · w[n], from column `at`.
template <int G>
inline void tile_backward(const float* const grad[], const float w[][SPAN], int n, int at,
                          float* acc) {
  f sum[G][TILE_K];
  for (int i = 0; i < G; ++i)
    for (int j = 0; j < TILE_K; ++j) sum[i][j] = Lanes::load(acc + i * SPAN + at + j * W);
  for (int r = 0; r < n; ++r) {
    f a[TILE_K];
    for (int j = 0; j < TILE_K; ++j) a[j] = Lanes::load(w[r] + at + j * W);
    for (int i = 0; i < G; ++i) {
      f g = Lanes::set1(grad[i][r]);
      for (int j = 0; j < TILE_K; ++j) sum[i][j] = Lanes::fma(g, a[j], sum[i][j]);
    }
  }
  for (int i = 0; i < G; ++i)
    for (int j = 0; j < TILE_K; ++j) Lanes::store(acc + i * SPAN + at + j * W, sum[i][j]);
}

inline void sweep_backward(const float* const grad[], int m, const float w[][SPAN], int n,
                           int width, float* acc) {
  int i = 0;
  for (; i + TILE_G <= m; i += TILE_G)
    for (int at = 0; at < width; at += TILE_K * W)
      tile_backward<TILE_G>(grad + i, w, n, at, acc + i * SPAN);
  for (; i < m; ++i)
    for (int at = 0; at < width; at += TILE_K * W)
      tile_backward<1>(grad + i, w, n, at, acc + i * SPAN);
}

// Packed order back to that of x; what lies beyond `inner` is dropped.
template <class F>
inline void unpack(const F& weight, int64_t chunk, int count, const float* from, float* to) {
  for (int c = 0; c < count; ++c)
    for (int v = 0; v < F::V; ++v)
      for (int l = 0; l < W; ++l) {
        int k = c * F::CHUNK + F::place(v, l);
        if (chunk * F::CHUNK + k < weight.inner) to[k] = from[c * F::CHUNK + v * W + l];
      }
}

// Rows [first, last) of grad[., outer], in their order or that of `index`, times `count` chunks of
// W. sink(r, values) gets what lies in those chunks of row r.
template <class F, class Sink>
inline void project_backward(const F& weight, int64_t chunk, int count, const float* grad,
                             int64_t outer, const int64_t* index, int64_t first, int64_t last,
                             const Sink& sink) {
  alignas(64) float w[OUTER][SPAN];
  alignas(64) float acc[ROWS * SPAN];
  float row[SPAN];
  const float* at[ROWS];
  for (int64_t r = first; r < last; r += ROWS) {
    int m = int(last - r < ROWS ? last - r : ROWS);
    memset(acc, 0, sizeof(float) * size_t(m * SPAN));
    for (int64_t n = 0; n < outer; n += OUTER) {
      int rows = int(outer - n < OUTER ? outer - n : OUTER);
      decode(weight, n, rows, chunk, count, w);
      for (int i = 0; i < m; ++i) at[i] = grad + (index ? index[r + i] : r + i) * outer + n;
      sweep_backward(at, m, w, rows, count * F::CHUNK, acc);
    }
    for (int i = 0; i < m; ++i) {
      unpack(weight, chunk, count, acc + i * SPAN, row);
      sink(r + i, row);
    }
  }
}

template <class F>
inline int32_t backward_rows(const F& weight, const float* grad, int64_t rows, int64_t outer,
                             void* grad_x, int32_t dtype) {
  constexpr int64_t STEP = SPAN / F::CHUNK;
  int64_t all = chunks(weight);
  parallel((all + STEP - 1) / STEP, [&](int64_t job, int) {
    int64_t chunk = job * STEP, from = chunk * F::CHUNK;
    int count = int(all - chunk < STEP ? all - chunk : STEP);
    int64_t n = weight.inner - from < SPAN ? weight.inner - from : SPAN;
    project_backward(weight, chunk, count, grad, outer, nullptr, 0, rows,
                     [&](int64_t r, const float* y) {
                       put(offset(grad_x, dtype, r * weight.inner + from), dtype, y, n);
                     });
  });
  return 0;
}

inline int32_t linear_backward(const float* grad, int64_t rows, const void* weight,
                               int32_t weight_dtype, int64_t outer, int64_t inner, void* grad_x,
                               int32_t x_dtype) {
  const uint8_t* data = static_cast<const uint8_t*>(weight);
  if (weight_dtype == GW_F32)
    return backward_rows(Fp32{data, inner}, grad, rows, outer, grad_x, x_dtype);
  return backward_rows(Bf16{data, inner}, grad, rows, outer, grad_x, x_dtype);
}

inline int32_t packed_linear_backward(const float* grad, int64_t rows, const void* blocks,
                                      const void* scales, int64_t outer, int64_t inner,
                                      void* grad_x, int32_t x_dtype) {
  Mxfp4 w{static_cast<const uint8_t*>(blocks), inner, static_cast<const uint8_t*>(scales)};
  return backward_rows(w, grad, rows, outer, grad_x, x_dtype);
}
