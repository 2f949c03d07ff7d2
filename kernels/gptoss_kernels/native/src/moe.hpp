// The stages of the mixture of experts. A row is a (token, slot) pair, numbered token · k + slot as
// it lies in memory; rows are visited sorted by expert, so that each weight is decoded once, and
// written where they belong.

constexpr int64_t ROWS_AT_ONCE = 4096;  // packed at a time

struct Sorted {
  int64_t* order;    // [row] rows by expert, equal experts in order
  int64_t* first;    // [expert + 1] where each expert's rows begin in `order`
  int64_t* used;     // [n_used] experts that have rows
  int64_t n_used;
};

// False if an expert number is out of range.
inline bool sort_rows(const int64_t* indices, int64_t rows, int64_t experts, Sorted& s) {
  for (int64_t e = 0; e <= experts; ++e) s.first[e] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (indices[r] < 0 || indices[r] >= experts) return false;
    ++s.first[indices[r] + 1];
  }
  s.n_used = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (s.first[e + 1]) s.used[s.n_used++] = e;
    s.first[e + 1] += s.first[e];
  }
  int64_t* next = s.used + experts;
  for (int64_t e = 0; e < experts; ++e) next[e] = s.first[e];
  for (int64_t r = 0; r < rows; ++r) s.order[next[indices[r]]++] = r;
  return true;
}

// Sorted rows and `floats` floats, 64-byte aligned, in the caller's scratch; false if there is none.
inline bool reserve(int64_t rows, int64_t experts, int64_t floats, Sorted& s, float*& packed) {
  int64_t words = (2 * rows + 3 * experts + 1 + 7) / 8 * 8;
  uint8_t* memory = static_cast<uint8_t*>(gw::scratch(size_t(8 * words + 4 * floats)));
  if (!memory) return false;
  s.order = reinterpret_cast<int64_t*>(memory);
  s.first = s.order + 2 * rows;
  s.used = s.first + experts + 1;
  packed = reinterpret_cast<float*>(memory + 8 * words);
  return true;
}

struct Experts {
  Mxfp4 weights;
  int64_t count, outer;
  Bias bias;  // [count, outer]
};

// All rows through their experts. Row r reads packed x row r / share. sink(r, first, n, values)
// gets n results of row r, from output `first` on.
template <class Sink>
inline int32_t through_experts(const Experts& e, const void* x, int32_t x_dtype, int64_t rows,
                               int64_t share, const int64_t* indices, const Sink& sink) {
  int64_t inner = e.weights.inner, stride = row_floats(e.weights);
  int64_t most = ROWS_AT_ONCE / share * share;
  most = rows < most ? rows : most;
  Sorted s;
  float* packed;
  if (!reserve(most, e.count, most / share * stride, s, packed)) return 1;
  int64_t* source = s.order + most;
  for (int64_t begin = 0; begin < rows; begin += most) {
    int64_t n_rows = rows - begin < most ? rows - begin : most;
    if (!sort_rows(indices + begin, n_rows, e.count, s)) return 2;
    for (int64_t r = 0; r < n_rows; ++r) source[r] = s.order[r] / share;
    const void* from = offset(x, x_dtype, begin / share * inner);
    pack_rows(e.weights, from, x_dtype, n_rows / share, packed);
    int64_t step = job_rows(n_rows > e.count ? n_rows : 1, e.outer, s.n_used);
    int64_t jobs = (e.outer + step - 1) / step;
    parallel(s.n_used * jobs, [&](int64_t job, int) {
      int64_t expert = s.used[job / jobs], start = job % jobs * step;
      Mxfp4 weights = e.weights.expert(expert, e.outer);
      for_blocks(start, start + step < e.outer ? start + step : e.outer, [&](int64_t row, int n) {
        float added[BLOCK];
        e.bias.read(expert * e.outer + row, n, added);
        project(weights, row, n, packed, source, s.first[expert], s.first[expert + 1],
                [&](int64_t r, float* y) {
                  add(y, added, n);
                  sink(begin + s.order[r], row, n, y);
                });
      });
    });
  }
  return 0;
}

inline void split_pairs(const float* pairs, int n, float* gate, float* up) {
  for (int i = 0; i < n / 2; ++i) gate[i] = pairs[2 * i], up[i] = pairs[2 * i + 1];
}

inline Experts experts_at(const void* blocks, const void* scales, const void* bias,
                          int32_t bias_dtype, int64_t count, int64_t outer, int64_t inner) {
  const uint8_t* data = static_cast<const uint8_t*>(blocks);
  return {{data, inner, static_cast<const uint8_t*>(scales)}, count, outer, {bias, bias_dtype}};
}

inline int32_t moe_gate_up(const void* x, int32_t x_dtype, int64_t tokens, int64_t k,
                           const int64_t* indices, int64_t experts, const void* blocks,
                           const void* scales, const void* bias, int32_t bias_dtype, int64_t d_ff,
                           int64_t d_model, float* gate, float* up) {
  Experts e = experts_at(blocks, scales, bias, bias_dtype, experts, 2 * d_ff, d_model);
  return through_experts(e, x, x_dtype, tokens * k, k, indices,
                         [&](int64_t r, int64_t first, int n, const float* y) {
                           int64_t at = r * d_ff + first / 2;
                           split_pairs(y, n, gate + at, up + at);
                         });
}

inline int32_t moe_up(const void* x, int32_t x_dtype, int64_t tokens, int64_t k,
                      const int64_t* indices, int64_t experts, const void* blocks,
                      const void* scales, const void* bias, int32_t bias_dtype, int64_t d_ff,
                      int64_t d_model, float limit, void* post) {
  Experts e = experts_at(blocks, scales, bias, bias_dtype, experts, 2 * d_ff, d_model);
  return through_experts(e, x, x_dtype, tokens * k, k, indices,
                         [&](int64_t r, int64_t first, int n, const float* y) {
                           float gate[BLOCK / 2], up[BLOCK / 2];
                           split_pairs(y, n, gate, up);
                           void* to = offset(post, x_dtype, r * d_ff + first / 2);
                           swiglu_strip(gate, up, n / 2, limit, to, x_dtype);
                         });
}

inline int32_t moe_down(const void* post, int32_t post_dtype, int64_t rows, const int64_t* indices,
                        int64_t experts, const void* blocks, const void* scales, const void* bias,
                        int32_t bias_dtype, int64_t d_model, int64_t d_ff, float* out) {
  Experts e = experts_at(blocks, scales, bias, bias_dtype, experts, d_model, d_ff);
  return through_experts(e, post, post_dtype, rows, 1, indices,
                         [&](int64_t r, int64_t first, int n, const float* y) {
                           memcpy(out + r * d_model + first, y, size_t(4 * n));
                         });
}

inline int32_t moe_combine(const float* out, const float* weights, int64_t tokens, int64_t k,
                           int64_t d_model, void* y, int32_t dtype) {
  parallel(tokens, [&](int64_t token, int) {
    const float* from = out + token * k * d_model;
    const float* weight = weights + token * k;
    float sum[W];
    for (int64_t i = 0; i < d_model; i += W) {
      int64_t left = d_model - i < W ? d_model - i : W;
      f acc = Lanes::zero();
      for (int64_t slot = 0; slot < k; ++slot)
        acc = Lanes::fma(load_part(from + slot * d_model + i, left), Lanes::set1(weight[slot]), acc);
      Lanes::store(sum, acc);
      put(offset(y, dtype, token * d_model + i), dtype, sum, left);
    }
  });
  return 0;
}

// ---- stages in one: what lies between them stays in memory of this thread, used layer by layer ----

constexpr int64_t TOKENS_AT_ONCE = 512;

// Down and combine for so many tokens; out is room for what lies between.
inline int32_t down_and_combine(const Experts& down, const void* post, int32_t dtype, int64_t tokens,
                                int64_t k, const int64_t* indices, const float* weights,
                                float* out, void* y) {
  int64_t d_model = down.outer;
  int32_t status = moe_down(post, dtype, tokens * k, indices, down.count, down.weights.data,
                            down.weights.factors, down.bias.data, down.bias.dtype, d_model,
                            down.weights.inner, out);
  return status ? status : moe_combine(out, weights, tokens, k, d_model, y, dtype);
}

inline int32_t moe_down_combine(const void* post, int32_t dtype, int64_t tokens, int64_t k,
                                const int64_t* indices, const float* weights, int64_t experts,
                                const void* blocks, const void* scales, const void* bias,
                                int32_t bias_dtype, int64_t d_model, int64_t d_ff, void* y) {
  Experts down = experts_at(blocks, scales, bias, bias_dtype, experts, d_model, d_ff);
  int64_t most = tokens < TOKENS_AT_ONCE ? tokens : TOKENS_AT_ONCE;
  float* out = static_cast<float*>(gw::scratch(size_t(most * k * d_model) * 4, 1));
  if (!out) return 1;
  for (int64_t first = 0; first < tokens; first += most) {
    int64_t n = tokens - first < most ? tokens - first : most, row = first * k;
    if (int32_t status = down_and_combine(down, offset(post, dtype, row * d_ff), dtype, n, k,
                                          indices + row, weights + row, out,
                                          offset(y, dtype, first * d_model)))
      return status;
  }
  return 0;
}

inline int32_t moe(const void* x, int32_t dtype, int64_t tokens, int64_t k, const int64_t* indices,
                   const float* weights, int64_t experts, const void* up_blocks,
                   const void* up_scales, const void* up_bias, int32_t up_bias_dtype,
                   const void* down_blocks, const void* down_scales, const void* down_bias,
                   int32_t down_bias_dtype, int64_t d_ff, int64_t d_model, float limit, void* y) {
  Experts down = experts_at(down_blocks, down_scales, down_bias, down_bias_dtype, experts, d_model,
                            d_ff);
  int64_t most = tokens < TOKENS_AT_ONCE ? tokens : TOKENS_AT_ONCE;
  float* out = static_cast<float*>(gw::scratch(size_t(most * k * (d_model + d_ff)) * 4, 1));
  if (!out) return 1;
  float* post = out + most * k * d_model;
  for (int64_t first = 0; first < tokens; first += most) {
    int64_t n = tokens - first < most ? tokens - first : most, row = first * k;
    int32_t status = moe_up(offset(x, dtype, first * d_model), dtype, n, k, indices + row, experts,
                            up_blocks, up_scales, up_bias, up_bias_dtype, d_ff, d_model, limit, post);
    if (!status)
      status = down_and_combine(down, post, dtype, n, k, indices + row, weights + row, out,
                                offset(y, dtype, first * d_model));
    if (status) return status;
  }
  return 0;
}
