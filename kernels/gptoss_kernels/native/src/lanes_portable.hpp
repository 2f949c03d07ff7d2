// The lanes concept, and its meaning in plain C++ for any CPU.
//
//   W                          floats in a vector f
//   PAIRS                      has products of bfloat16 pairs, see lanes_avx512_bf16.hpp
//   fma(a, b, c)               a·b + c, rounded once where the CPU can (here twice)
//   hsum                       sum of the lanes in a fixed tree
//   hsum4(a, out)              out[0 .. 4) = hsum of each a
//   min(a, b), max(a, b)       b when either is NaN, as SSE does
//   round                      to the nearest integer, ties to even, for |a| < 2^22
//   pow2(n)                    2^n for an integer-valued n in [-126, 127]
//   load_bf16, store_bf16      W bfloat16; stored to nearest even, NaN as 0x7fc0
//   bf16_pair(p, even, odd)    2W bfloat16: elements 2l and 2l+1 in lane l
//   mxfp4_low, mxfp4_high      W/4 blocks of 16 bytes -> 4 of 8 vectors, not scaled: lane l of
//                              vector v is weight mxfp4_place(v, l) of the 8W
//   mxfp4_order(x, out)        8W floats: out[v W + l] = x[mxfp4_place(v, l)]
//   scales(p)                  W/4 bytes -> 2^(byte - 127) of block l/4 in lane l; 255 is NaN
//   select(mask, a, b)         a where the lane of mask = less(...) holds, else b
// Nothing reads or writes beyond what its line says.

struct Lanes {
  static constexpr int W = 8;
  static constexpr bool PAIRS = false;
  struct f {
    float v[W];
  };

  template <class Op>
  static f each(Op op) {
    f r;
    for (int i = 0; i < W; ++i) r.v[i] = op(i);
    return r;
  }
  static f zero() { return set1(0.0f); }
  static f set1(float a) {
    return each([=](int) { return a; });
  }
  static f load(const float* p) {
    f r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static void store(float* p, f a) { memcpy(p, a.v, sizeof a.v); }
  static f add(f a, f b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static f sub(f a, f b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static f mul(f a, f b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static f div(f a, f b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static f min(f a, f b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static f max(f a, f b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static f fma(f a, f b, f c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static f sqrt(f a) {
    return each([&](int i) { return __builtin_sqrtf(a.v[i]); });
  }
  static f round(f a) {
    return each([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; });
  }
  static f pow2(f n) {
    return each([&](int i) { return of_bits(uint32_t(int32_t(n.v[i]) + 127) << 23); });
  }
  struct mask {
    bool v[W];
  };
  static mask less(f a, f b) {
    mask r;
    for (int i = 0; i < W; ++i) r.v[i] = a.v[i] < b.v[i];
    return r;
  }
  static f select(mask m, f a, f b) {
    return each([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
  }
  static float hsum(f a) {
    float b[4], c[2];
    for (int i = 0; i < 4; ++i) b[i] = a.v[i] + a.v[i + 4];
    for (int i = 0; i < 2; ++i) c[i] = b[i] + b[i + 2];
    return c[0] + c[1];
  }
  static void hsum4(const f a[4], float* out) {
    for (int i = 0; i < 4; ++i) out[i] = hsum(a[i]);
  }

  static f load_bf16(const uint16_t* p) {
    return each([&](int i) { return widen(p[i]); });
  }
  static void store_bf16(uint16_t* p, f a) {
    for (int i = 0; i < W; ++i) p[i] = narrow(a.v[i]);
  }
  static void bf16_pair(const uint16_t* p, f& even, f& odd) {
    for (int i = 0; i < W; ++i) even.v[i] = widen(p[2 * i]), odd.v[i] = widen(p[2 * i + 1]);
  }

  static constexpr int mxfp4_place(int v, int l) {
    return 32 * (l / 4) + 2 * (8 * (v / 2 % 2) + 2 * (l % 4) + v % 2) + v / 4;
  }
  static void mxfp4_order(const float* x, float* out) {
    for (int v = 0; v < 8; ++v)
      for (int l = 0; l < W; ++l) out[v * W + l] = x[mxfp4_place(v, l)];
  }
  static void mxfp4_low(const uint8_t* p, f out[4]) { mxfp4(p, 0, out); }
  static void mxfp4_high(const uint8_t* p, f out[4]) { mxfp4(p, 4, out); }
  static void mxfp4(const uint8_t* p, int first, f out[4]) {
    static constexpr float E2M1[16] = {0,  .5f,  1,  1.5f,  2,  3,  4,  6,
                                       -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    for (int v = 0; v < 4; ++v)
      for (int l = 0; l < W; ++l) {
        int k = mxfp4_place(first + v, l);
        out[v].v[l] = E2M1[k % 2 ? p[k / 2] >> 4 : p[k / 2] & 15];
      }
  }
  static f scales(const uint8_t* p) {
    return each([&](int i) {
      uint32_t s = p[i / 4];
      return of_bits(s << 23 | (s == 0 || s == 255 ? 0x400000u : 0u));
    });
  }

  static float of_bits(uint32_t bits) {
    float a;
    memcpy(&a, &bits, 4);
    return a;
  }
  static float widen(uint16_t a) { return of_bits(uint32_t(a) << 16); }
  static uint16_t narrow(float a) {
    uint32_t bits;
    memcpy(&bits, &a, 4);
    if (a != a) return 0x7fc0;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};
