// <immintrin.h> for a compiler run that has AVX2 and FMA but no AVX-512: SIMDe under the names of
// the AVX-512 instructions, and here the few it lacks, lane by lane as Intel's manual says.
//
// Found before the system's header with -I. A 512-bit instruction that neither knows does not
// compile ("target specific option mismatch"), so nothing here can fall back unseen.
#pragma once

#include_next <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(__AVX2__) || !defined(__FMA__) || defined(__AVX512F__)
#error "compile with -mavx2 -mfma: 512 bits are emulated as two halves of 256"
#endif

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace software {

template <class To, class From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class A, int N>
struct Row {
  A v[N];
};

inline simde__m512i cvtps_epi32(simde__m512 a) {
  auto from = bits<Row<float, 16>>(a);
  Row<int32_t, 16> to;
  for (int i = 0; i < 16; ++i) {
    float whole = std::nearbyintf(from.v[i]);
    to.v[i] = std::fabs(whole) < 0x1p31f ? int32_t(whole) : INT32_MIN;
  }
  return bits<simde__m512i>(to);
}
template <class Narrow, class Vector>
inline simde__m512i widen(Vector a) {
  Row<Narrow, sizeof(Vector) / sizeof(Narrow)> from = bits<decltype(from)>(a);
  Row<int32_t, 16> to;
  for (int i = 0; i < 16; ++i) to.v[i] = from.v[i];
  return bits<simde__m512i>(to);
}
inline __m256i cvtepi32_epi16(simde__m512i a) {
  auto from = bits<Row<uint32_t, 16>>(a);
  Row<uint16_t, 16> to;
  for (int i = 0; i < 16; ++i) to.v[i] = uint16_t(from.v[i]);
  return bits<__m256i>(to);
}
inline __m256 extractf32x8_ps(simde__m512 a, int half) {
  return bits<__m256>(bits<Row<Row<float, 8>, 2>>(a).v[half & 1]);
}

// Denormal inputs and results count as 0; the odd product is added first, each rounded once.
inline float flushed(float a) { return std::fabs(a) < 0x1p-126f ? std::copysign(0.0f, a) : a; }
template <class Pairs>
inline simde__m512 dpbf16_ps(simde__m512 sum, Pairs a, Pairs b) {
  auto to = bits<Row<float, 16>>(sum);
  auto x = bits<Row<uint16_t, 32>>(a), y = bits<Row<uint16_t, 32>>(b);
  for (int i = 0; i < 16; ++i)
    for (int j = 2 * i + 1; j >= 2 * i; --j) {
      float one = flushed(bits<float>(uint32_t(x.v[j]) << 16));
      float other = flushed(bits<float>(uint32_t(y.v[j]) << 16));
      to.v[i] = flushed(std::fma(one, other, flushed(to.v[i])));
    }
  return bits<simde__m512>(to);
}
// Bytes that are masked out are not read.
inline simde__m512i maskz_loadu_epi8(uint64_t mask, const void* p) {
  Row<uint8_t, 64> to = {};
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1) to.v[i] = static_cast<const uint8_t*>(p)[i];
  return bits<simde__m512i>(to);
}

}  // namespace software

#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(a) software::cvtps_epi32(a)
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(a) software::widen<uint8_t>(a)
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(a) software::widen<uint16_t>(a)
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(a) software::cvtepi32_epi16(a)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(a, half) software::extractf32x8_ps(a, half)
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8(mask, p) software::maskz_loadu_epi8(mask, p)
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(sum, a, b) software::dpbf16_ps(sum, a, b)
