// Rotary positions; the formula is in gptoss_kernels/rope.py.

constexpr int64_t ROTATED_ELEMENTS = 1 << 15;  // of a piece of work

template <class T>
void rotate_head(const T* x, const float* cos, const float* sin, int64_t half, T* y) {
  for (int64_t i = 0; i < half; ++i) {
    const float one = widen(x[i]), two = widen(x[i + half]);
    narrow(one * cos[i] - two * sin[i], y[i]);
    narrow(two * cos[i] + one * sin[i], y[i + half]);
  }
}

template <class T>
int32_t rotate_tokens(const T* x, int64_t tokens, int64_t heads, int64_t d_head, const float* cos,
                      const float* sin, T* y) {
  const int64_t half = d_head / 2, piece = ROTATED_ELEMENTS / (heads * d_head + 1) + 1;
  parallel((tokens + piece - 1) / piece, [&](int64_t at, int) {
    for (int64_t token = at * piece; token < tokens && token < (at + 1) * piece; ++token)
      for (int64_t row = token * heads; row < (token + 1) * heads; ++row)
        rotate_head(x + row * d_head, cos + token * half, sin + token * half, half,
                    y + row * d_head);
  });
  return 0;
}

int32_t rotate(const void* x, int32_t dtype, int64_t tokens, int64_t heads, int64_t d_head,
               const float* cos, const float* sin, void* y) {
  if (dtype == GW_BF16)
    return rotate_tokens(static_cast<const uint16_t*>(x), tokens, heads, d_head, cos, sin,
                         static_cast<uint16_t*>(y));
  return rotate_tokens(static_cast<const float*>(x), tokens, heads, d_head, cos, sin,
                       static_cast<float*>(y));
}
