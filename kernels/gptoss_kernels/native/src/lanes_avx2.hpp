// AVX2 + FMA: 8 floats. The concept is written down in lanes_portable.hpp.

// 2^(byte - 127), NaN for 255.
struct Powers {
  float at[256] = {};
  constexpr Powers() {
    float power = 0x1p-127f;
    for (int s = 0; s < 255; ++s, power *= s < 255 ? 2.0f : 1.0f) at[s] = power;
    at[255] = __builtin_nanf("");
  }
};

struct Lanes {
  static constexpr int W = 8;
  static constexpr bool PAIRS = false;
  using f = __m256;
  using mask = __m256;

  static f zero() { return _mm256_setzero_ps(); }
  static f set1(float a) { return _mm256_set1_ps(a); }
  static f load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, f a) { _mm256_storeu_ps(p, a); }
  static f add(f a, f b) { return _mm256_add_ps(a, b); }
  static f sub(f a, f b) { return _mm256_sub_ps(a, b); }
  static f mul(f a, f b) { return _mm256_mul_ps(a, b); }
  static f div(f a, f b) { return _mm256_div_ps(a, b); }
  static f min(f a, f b) { return _mm256_min_ps(a, b); }
  static f max(f a, f b) { return _mm256_max_ps(a, b); }
  static f fma(f a, f b, f c) { return _mm256_fmadd_ps(a, b, c); }
  static f sqrt(f a) { return _mm256_sqrt_ps(a); }
  static f round(f a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static f pow2(f n) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static mask less(f a, f b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static f select(mask m, f a, f b) { return _mm256_blendv_ps(b, a, m); }
  static float hsum(f a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
  }
  static void hsum4(const f a[4], float* out) {
    __m128 b[4];
    for (int i = 0; i < 4; ++i)
      b[i] = _mm_add_ps(_mm256_castps256_ps128(a[i]), _mm256_extractf128_ps(a[i], 1));
    __m128 ab = _mm_add_ps(_mm_unpacklo_ps(b[0], b[1]), _mm_unpackhi_ps(b[0], b[1]));
    __m128 cd = _mm_add_ps(_mm_unpacklo_ps(b[2], b[3]), _mm_unpackhi_ps(b[2], b[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
  }

  static f load_bf16(const uint16_t* p) {
    __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store_bf16(uint16_t* p, f a) {
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
    up = _mm256_srli_epi32(up, 16);
    up = _mm256_permute4x64_epi64(_mm256_packus_epi32(up, up), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(up));
  }
  static void bf16_pair(const uint16_t* p, f& even, f& odd) {
    split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), even, odd);
  }

  static constexpr int mxfp4_place(int v, int l) {
    return 32 * (l / 4) + 2 * (8 * (v / 2 % 2) + 2 * (l % 4) + v % 2) + v / 4;
  }
  // Every fourth of 16 floats, in both 128-bit halves at once: four by four, turned.
  static void mxfp4_order(const float* x, float* out) {
    for (int half = 0; half < 2; ++half, x += 16) {
      f row[4];
      for (int l = 0; l < 4; ++l)
        row[l] = _mm256_set_m128(_mm_loadu_ps(x + 32 + 4 * l), _mm_loadu_ps(x + 4 * l));
      f ab = _mm256_unpacklo_ps(row[0], row[1]), cd = _mm256_unpacklo_ps(row[2], row[3]);
      f gh = _mm256_unpackhi_ps(row[0], row[1]), ij = _mm256_unpackhi_ps(row[2], row[3]);
      float* to = out + 2 * half * W;
      store(to, _mm256_shuffle_ps(ab, cd, 0x44));
      store(to + 4 * W, _mm256_shuffle_ps(ab, cd, 0xee));
      store(to + W, _mm256_shuffle_ps(gh, ij, 0x44));
      store(to + 5 * W, _mm256_shuffle_ps(gh, ij, 0xee));
    }
  }
  static void mxfp4_low(const uint8_t* p, f out[4]) {
    widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), out);
  }
  static void mxfp4_high(const uint8_t* p, f out[4]) {
    __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    widen(_mm256_srli_epi16(bytes, 4), out);
  }
  static f scales(const uint8_t* p) {
    static constexpr Powers power;
    return _mm256_set_m128(_mm_broadcast_ss(power.at + p[1]), _mm_broadcast_ss(power.at + p[0]));
  }

  static void split(__m256i words, f& even, f& odd) {
    even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))));
  }
  // The lower nibbles. Two table look-ups give the upper and the lower byte of each bfloat16; no
  // value leaves its 128-bit half, in which one block lies.
  static void widen(__m256i bytes, f out[4]) {
    const __m256i upper = twice(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40);
    const __m256i lower = twice(0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0);
    const __m256i sign = _mm256_broadcastsi128_si256(
        _mm_set_epi64x(int64_t(0x8080808080808080u), 0));
    __m256i codes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    __m256i high = _mm256_shuffle_epi8(_mm256_or_si256(upper, sign), codes);
    __m256i low = _mm256_shuffle_epi8(lower, codes);
    split(_mm256_unpacklo_epi8(low, high), out[0], out[1]);
    split(_mm256_unpackhi_epi8(low, high), out[2], out[3]);
  }
  static __m256i twice(int a, int b, int c, int d, int e, int g, int h, int i) {
    __m128i low = _mm_setr_epi8(char(a), char(b), char(c), char(d), char(e), char(g), char(h),
                                char(i), char(a), char(b), char(c), char(d), char(e), char(g),
                                char(h), char(i));
    return _mm256_broadcastsi128_si256(low);
  }
};
