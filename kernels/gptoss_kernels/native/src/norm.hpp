// RMSNorm; the formula is in gptoss_kernels/rms_norm.py.
//
// A row is summed in 32 partial sums (element i joins sum i % 32), then by halves: one order on
// every instruction set.

constexpr int PARTIAL_SUMS = 32;
constexpr int64_t NORM_ELEMENTS = 1 << 15;  // of a piece of work

template <class T>
float mean_square(const T* x, int64_t d) {
  float sum[PARTIAL_SUMS] = {};
  int64_t i = 0;
  for (; i + PARTIAL_SUMS <= d; i += PARTIAL_SUMS)
    for (int l = 0; l < PARTIAL_SUMS; ++l) sum[l] += widen(x[i + l]) * widen(x[i + l]);
  for (int l = 0; i + l < d; ++l) sum[l] += widen(x[i + l]) * widen(x[i + l]);
  for (int half = PARTIAL_SUMS / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0] / float(d);
}

// U is the stored type of the weight, which may lie anywhere in a mapped file.
template <class U, class T>
void norm_row(const T* x, const void* weight, int64_t d, float scale, T* y) {
  for (int64_t i = 0; i < d; ++i) narrow(widen(x[i]) / scale * stored<U>(weight, i), y[i]);
}

template <class T>
int32_t norm_rows(const T* x, int64_t rows, int64_t d, const void* weight, int32_t weight_dtype,
                  float eps, float* scale, T* y) {
  const int64_t piece = NORM_ELEMENTS / (d + 1) + 1;
  parallel((rows + piece - 1) / piece, [&](int64_t at, int) {
    for (int64_t row = at * piece; row < rows && row < (at + 1) * piece; ++row) {
      const float size = __builtin_sqrtf(mean_square(x + row * d, d) + eps);
      if (scale) scale[row] = size;
      if (!y) continue;
      const auto weigh = weight_dtype == GW_BF16 ? norm_row<uint16_t, T> : norm_row<float, T>;
      weigh(x + row * d, weight, d, size, y + row * d);
    }
  });
  return 0;
}

int32_t rms_norm(const void* x, int32_t dtype, int64_t rows, int64_t d, const void* weight,
                 int32_t weight_dtype, float eps, float* scale, void* y) {
  if (dtype == GW_BF16)
    return norm_rows(static_cast<const uint16_t*>(x), rows, d, weight, weight_dtype, eps, scale,
                     static_cast<uint16_t*>(y));
  return norm_rows(static_cast<const float*>(x), rows, d, weight, weight_dtype, eps, scale,
                   static_cast<float*>(y));
}
