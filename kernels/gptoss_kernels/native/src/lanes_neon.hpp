// NEON (64-bit Arm): 4 floats. The concept is written down in lanes_portable.hpp.

struct Lanes {
  static constexpr int W = 4;
  static constexpr bool PAIRS = false;
  using f = float32x4_t;
  using mask = uint32x4_t;

  static f zero() { return vdupq_n_f32(0.0f); }
  static f set1(float a) { return vdupq_n_f32(a); }
  static f load(const float* p) { return vreinterpretq_f32_u8(bytes(p)); }
  static void store(float* p, f a) { memcpy(p, &a, sizeof a); }
  static f add(f a, f b) { return vaddq_f32(a, b); }
  static f sub(f a, f b) { return vsubq_f32(a, b); }
  static f mul(f a, f b) { return vmulq_f32(a, b); }
  static f div(f a, f b) { return vdivq_f32(a, b); }
  static f min(f a, f b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static f max(f a, f b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static f fma(f a, f b, f c) { return vfmaq_f32(c, a, b); }
  static f sqrt(f a) { return vsqrtq_f32(a); }
  static f round(f a) { return vrndnq_f32(a); }
  static f pow2(f n) {
    int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
  }
  static mask less(f a, f b) { return vcltq_f32(a, b); }
  static f select(mask m, f a, f b) { return vbslq_f32(m, a, b); }
  static float hsum(f a) {
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
  }
  static void hsum4(const f a[4], float* out) {
    f b[2];
    for (int i = 0; i < 4; i += 2)
      b[i / 2] = vaddq_f32(vcombine_f32(vget_low_f32(a[i]), vget_low_f32(a[i + 1])),
                           vcombine_f32(vget_high_f32(a[i]), vget_high_f32(a[i + 1])));
    store(out, vpaddq_f32(b[0], b[1]));
  }

  static f load_bf16(const uint16_t* p) {
    uint16x4_t half;
    memcpy(&half, p, sizeof half);
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
  }
  static void store_bf16(uint16_t* p, f a) {
    uint32x4_t bits = vreinterpretq_u32_f32(a);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    up = vbslq_u32(vceqq_f32(a, a), up, vdupq_n_u32(0x7fc00000));
    uint16x4_t half = vshrn_n_u32(up, 16);
    memcpy(p, &half, sizeof half);
  }
  static void bf16_pair(const uint16_t* p, f& even, f& odd) { split(bytes(p), even, odd); }

  static constexpr int mxfp4_place(int v, int l) {
    return 2 * (8 * (v / 2 % 2) + 2 * l + v % 2) + v / 4;
  }
  static void mxfp4_order(const float* x, float* out) {
    for (int half = 0; half < 2; ++half) {
      float32x4x4_t fourth = vld4q_f32(x + 16 * half);
      for (int i = 0; i < 4; ++i) store(out + 4 * (4 * (i % 2) + 2 * half + i / 2), fourth.val[i]);
    }
  }
  static void mxfp4(const uint8_t* p, f out[8]) {
    mxfp4_low(p, out);
    mxfp4_high(p, out + 4);
  }
  static void mxfp4_low(const uint8_t* p, f out[4]) {
    look_up(vandq_u8(vld1q_u8(p), vdupq_n_u8(15)), out);
  }
  static void mxfp4_high(const uint8_t* p, f out[4]) { look_up(vshrq_n_u8(vld1q_u8(p), 4), out); }
  static f scales(const uint8_t* p) {
    uint32_t s = *p;
    uint32_t bits = s << 23 | (s == 0 || s == 255 ? 0x400000u : 0u);
    return vreinterpretq_f32_u32(vdupq_n_u32(bits));
  }

  static uint8x16_t bytes(const void* p) {
    uint8x16_t a;
    memcpy(&a, p, sizeof a);
    return a;
  }
  static void split(uint8x16_t words, f& even, f& odd) {
    uint32x4_t pair = vreinterpretq_u32_u8(words);
    even = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
    odd = vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xffff0000u)));
  }
  // Two table look-ups give the upper and the lower byte of each bfloat16.
  static void look_up(uint8x16_t codes, f out[4]) {
    static constexpr uint8_t UPPER[16] = {0,    0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                          0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
    static constexpr uint8_t LOWER[16] = {0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0,
                                          0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0};
    uint8x16_t upper = vqtbl1q_u8(vld1q_u8(UPPER), codes);
    uint8x16_t lower = vqtbl1q_u8(vld1q_u8(LOWER), codes);
    split(vzip1q_u8(lower, upper), out[0], out[1]);
    split(vzip2q_u8(lower, upper), out[2], out[3]);
  }
};
