// Clamped SwiGLU and its gradient; the formula is in swiglu.py.
//   y = g σ(1.702 g) (v + 1),  g = min(gate, limit),  v = clamp(up, -limit, limit)

constexpr float ALPHA = 1.702f;

struct Clamped {
  f gate, up, open;  // open = σ(1.702 gate)

  Clamped(f g, f v, f limit)
      : gate(Lanes::min(limit, g)),
        up(Lanes::max(Lanes::sub(Lanes::zero(), limit), Lanes::min(limit, v))),
        open(sigmoid(Lanes::mul(Lanes::set1(ALPHA), gate))) {}

  f value() const {
    return Lanes::mul(Lanes::mul(gate, open), Lanes::add(up, Lanes::set1(1.0f)));
  }
  f grad_up() const { return Lanes::mul(gate, open); }
  f grad_gate() const {
    f shut = Lanes::sub(Lanes::set1(1.0f), open);
    f slope = Lanes::fma(Lanes::mul(Lanes::set1(ALPHA), gate), shut, Lanes::set1(1.0f));
    return Lanes::mul(Lanes::mul(open, slope), Lanes::add(up, Lanes::set1(1.0f)));
  }
};

// Up to W floats; what lies beyond is 0.
inline f load_part(const float* p, int64_t n) {
  if (n >= W) return Lanes::load(p);
  float padded[W] = {};
  memcpy(padded, p, size_t(4 * n));
  return Lanes::load(padded);
}

inline void store_part(float* p, f a, int64_t n) {
  float padded[W];
  Lanes::store(padded, a);
  memcpy(p, padded, size_t(4 * (n < W ? n : W)));
}

constexpr int64_t STRIP = 4096;  // elements a thread takes at a time

inline void swiglu_strip(const float* gate, const float* up, int64_t n, float limit, void* post,
                         int32_t dtype) {
  const f most = Lanes::set1(limit);
  int64_t i = 0;
  for (; i + W <= n; i += W)
    put_whole(offset(post, dtype, i), dtype,
              Clamped(Lanes::load(gate + i), Lanes::load(up + i), most).value());
  if (i == n) return;
  float y[W];
  Lanes::store(y, Clamped(load_part(gate + i, n - i), load_part(up + i, n - i), most).value());
  put(offset(post, dtype, i), dtype, y, n - i);
}

inline int32_t swiglu(const float* gate, const float* up, int64_t n, float limit, void* post,
                      int32_t dtype) {
  parallel((n + STRIP - 1) / STRIP, [&](int64_t job, int) {
    int64_t i = job * STRIP;
    swiglu_strip(gate + i, up + i, n - i < STRIP ? n - i : STRIP, limit, offset(post, dtype, i),
                 dtype);
  });
  return 0;
}

// Nothing flows through a clamped value.
inline int32_t swiglu_backward(const float* grad, const float* gate, const float* up, int64_t n,
                               float limit, float* grad_gate, float* grad_up) {
  f most = Lanes::set1(limit), least = Lanes::set1(-limit);
  parallel((n + STRIP - 1) / STRIP, [&](int64_t job, int) {
    int64_t end = n < (job + 1) * STRIP ? n : (job + 1) * STRIP;
    for (int64_t i = job * STRIP; i < end; i += W) {
      int64_t left = end - i;
      f d = load_part(grad + i, left), g = load_part(gate + i, left), v = load_part(up + i, left);
      Clamped c(g, v, most);
      f by_gate = Lanes::select(Lanes::less(most, g), Lanes::zero(), c.grad_gate());
      f by_up = Lanes::select(Lanes::less(most, v), Lanes::zero(), c.grad_up());
      by_up = Lanes::select(Lanes::less(v, least), Lanes::zero(), by_up);
      store_part(grad_gate + i, Lanes::mul(d, by_gate), left);
      store_part(grad_up + i, Lanes::mul(d, by_up), left);
    }
  });
  return 0;
}
