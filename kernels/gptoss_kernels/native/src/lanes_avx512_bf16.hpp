// AVX-512 with products of bfloat16 pairs (AVX512_BF16); all else as in lanes_avx512.hpp, which is
// included before under the name Avx512. Beside that concept:
//
//   words                      2W bfloat16, or 64 bytes of packed weights
//   load_words(p), (p, n)      64 bytes; only the first n, the others zero
//   dot(a, b, c)               c + a·b of words 2l + 1, then of 2l, in lane l; each rounded once,
//                              to nearest even, and denormals, in and out, are 0 (VDPBF16PS)
//   mxfp4_words                64 bytes -> 4 vectors, not scaled: word i of vector v is weight
//                              mxfp4_word_place(v, i)
#define GW_PAIRS

struct Lanes : Avx512 {
  static constexpr bool PAIRS = true;
  using words = __m512i;

  static words load_words(const void* p) { return _mm512_loadu_si512(p); }
  static words load_words(const void* p, int n) {
    return _mm512_maskz_loadu_epi8((uint64_t(1) << n) - 1, p);
  }
  static f dot(words a, words b, f c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }

  // The permutation reads the lowest 5 bits of a word; the values are there twice, so that the
  // fifth, which belongs to the next code, makes no difference.
  static constexpr int mxfp4_word_place(int v, int i) { return 4 * i + v; }
  static void mxfp4_words(words codes, words out[4]) {
    static constexpr uint16_t E2M1[2 * W] = {
        0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
        0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0, 0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
        0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
    const words values = load_words(E2M1);
    out[0] = _mm512_permutexvar_epi16(codes, values);
    out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), values);
    out[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), values);
    out[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), values);
  }
};
