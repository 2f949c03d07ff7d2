// AVX-512 (F, BW, DQ, VL): 16 floats. The concept is written down in lanes_portable.hpp.

struct Lanes {
  static constexpr int W = 16;
  static constexpr bool PAIRS = false;
  using f = __m512;
  using mask = __mmask16;

  static f zero() { return _mm512_setzero_ps(); }
  static f set1(float a) { return _mm512_set1_ps(a); }
  static f load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, f a) { _mm512_storeu_ps(p, a); }
  static f add(f a, f b) { return _mm512_add_ps(a, b); }
  static f sub(f a, f b) { return _mm512_sub_ps(a, b); }
  static f mul(f a, f b) { return _mm512_mul_ps(a, b); }
  static f div(f a, f b) { return _mm512_div_ps(a, b); }
  static f min(f a, f b) { return _mm512_min_ps(a, b); }
  static f max(f a, f b) { return _mm512_max_ps(a, b); }
  static f fma(f a, f b, f c) { return _mm512_fmadd_ps(a, b, c); }
  static f sqrt(f a) { return _mm512_sqrt_ps(a); }
  static f round(f a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static f pow2(f n) {
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static mask less(f a, f b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static f select(mask m, f a, f b) { return _mm512_mask_blend_ps(m, b, a); }
  static float hsum(f a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static void hsum4(const f a[4], float* out) {
    __m128 b[4];
    for (int i = 0; i < 4; ++i) {
      __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a[i]), _mm512_extractf32x8_ps(a[i], 1));
      b[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    __m128 ab = _mm_add_ps(_mm_unpacklo_ps(b[0], b[1]), _mm_unpackhi_ps(b[0], b[1]));
    __m128 cd = _mm_add_ps(_mm_unpacklo_ps(b[2], b[3]), _mm_unpackhi_ps(b[2], b[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
  }

  static f load_bf16(const uint16_t* p) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_bf16(uint16_t* p, f a) {
    __m512i bits = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    mask nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    up = _mm512_mask_blend_epi32(nan, up, _mm512_set1_epi32(0x7fc00000));
    __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
  }
  static void bf16_pair(const uint16_t* p, f& even, f& odd) {
    __m512i words = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000u))));
  }

  static constexpr int mxfp4_place(int v, int l) { return 8 * l + v; }
  static void mxfp4_order(const float* x, float* out) {
    for (int l = 0; l < W; ++l)
      for (int v = 0; v < 8; ++v) out[v * W + l] = x[8 * l + v];
  }
  static void mxfp4(const uint8_t* p, f out[8]) {
    mxfp4_low(p, out);
    mxfp4_high(p, out + 4);
  }
  static void mxfp4_low(const uint8_t* p, f out[4]) { look_up(_mm512_loadu_si512(p), out); }
  static void mxfp4_high(const uint8_t* p, f out[4]) {
    look_up(_mm512_srli_epi32(_mm512_loadu_si512(p), 16), out);
  }
  static f scales(const uint8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    const __m128i repeat = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512i s = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi32_si128(four), repeat));
    __m512i bits = _mm512_max_epi32(_mm512_slli_epi32(s, 23), _mm512_set1_epi32(0x400000));
    mask nan = _mm512_cmpeq_epi32_mask(s, _mm512_set1_epi32(255));
    bits = _mm512_mask_blend_epi32(nan, bits, _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(bits);
  }

  // Four codes of each 32-bit lane. The permutation reads a lane's lowest 4 bits, so a code only
  // has to be moved there, and all 16 values fit in one register.
  static void look_up(__m512i codes, f out[4]) {
    const f e2m1 = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                  -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    out[0] = _mm512_permutexvar_ps(codes, e2m1);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), e2m1);
    out[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8), e2m1);
    out[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 12), e2m1);
  }
};
