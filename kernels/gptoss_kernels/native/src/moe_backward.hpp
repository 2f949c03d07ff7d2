// Gradients of the stages of the mixture of experts with respect to activations and weights of
// the router.

// grad_x[row] = grad[row] · W of the row's expert, [outer, inner].
inline int32_t moe_backward(const float* grad, int64_t rows, const int64_t* indices,
                            int64_t experts, const void* blocks, const void* scales, int64_t outer,
                            int64_t inner, void* grad_x, int32_t dtype) {
  constexpr int64_t STEP = SPAN / Mxfp4::CHUNK;
  Experts e = experts_at(blocks, scales, nullptr, GW_F32, experts, outer, inner);
  Sorted s;
  float* unused;
  if (!reserve(rows, experts, 0, s, unused)) return 1;
  if (!sort_rows(indices, rows, experts, s)) return 2;
  int64_t all = chunks(e.weights), spans = (all + STEP - 1) / STEP;
  parallel(s.n_used * spans, [&](int64_t job, int) {
    int64_t expert = s.used[job / spans], chunk = job % spans * STEP, from = chunk * Mxfp4::CHUNK;
    int count = int(all - chunk < STEP ? all - chunk : STEP);
    int64_t n = inner - from < SPAN ? inner - from : SPAN;
    project_backward(e.weights.expert(expert, outer), chunk, count, grad, outer, s.order,
                     s.first[expert], s.first[expert + 1], [&](int64_t r, const float* y) {
                       put(offset(grad_x, dtype, s.order[r] * inner + from), dtype, y, n);
                     });
  });
  return 0;
}

// grad_out[token, slot] = weight · grad[token];  grad_weights = out[token, slot] · grad[token].
inline int32_t moe_combine_backward(const float* grad, const float* out, const float* weights,
                                    int64_t tokens, int64_t k, int64_t d_model, float* grad_out,
                                    float* grad_weights) {
  parallel(tokens * k, [&](int64_t row, int) {
    const float* g = grad + row / k * d_model;
    f weight = Lanes::set1(weights[row]), dot = Lanes::zero();
    for (int64_t i = 0; i < d_model; i += W) {
      int64_t left = d_model - i, at = row * d_model + i;
      f a = load_part(g + i, left);
      dot = Lanes::fma(a, load_part(out + at, left), dot);
      store_part(grad_out + at, Lanes::mul(a, weight), left);
    }
    grad_weights[row] = Lanes::hsum(dot);
  });
  return 0;
}
