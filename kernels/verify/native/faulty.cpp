// The kernels of one instruction set with a lane that is wrong on purpose: what a check must catch.
//
//   GW_LANES, GW_KERNELS, GW_ISA    the header of the lanes, the name of the table and of the ISA
//   GW_FAULT                        1 nibbles swapped   2 block scale dropped   3 bfloat16 cut off
//                                   4 one lane missing in sums   5 exponent one too high
//                                   6 one product of a pair missing   7 nibbles of pairs swapped
//   GW_BASE                         the header of the lanes that GW_LANES adds to, if it does
#ifdef __aarch64__
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include <cstring>

#include "abi.h"
#include "pool.hpp"
#include "seen_keys.hpp"

namespace {
#ifdef GW_BASE
#define Lanes Avx512
#include GW_BASE
#undef Lanes
#endif
#define Lanes Sound
#include GW_LANES
#undef Lanes

struct Lanes : Sound {
  struct Swapped {
    uint8_t bytes[4 * W];
    explicit Swapped(const uint8_t* p) {
      for (int i = 0; i < 4 * W; ++i) bytes[i] = uint8_t(p[i] << 4 | p[i] >> 4);
    }
  };
#if GW_FAULT == 1
  static void mxfp4(const uint8_t* p, f out[8]) {
    mxfp4_low(p, out);
    mxfp4_high(p, out + 4);
  }
  static void mxfp4_low(const uint8_t* p, f out[4]) { Sound::mxfp4_low(Swapped(p).bytes, out); }
  static void mxfp4_high(const uint8_t* p, f out[4]) { Sound::mxfp4_high(Swapped(p).bytes, out); }
#elif GW_FAULT == 2
  static f scales(const uint8_t*) { return set1(1.0f); }
#elif GW_FAULT == 3
  static void store_bf16(uint16_t* p, f a) {
    float wide[W];
    store(wide, a);
    for (int i = 0; i < W; ++i) memcpy(p + i, reinterpret_cast<char*>(wide + i) + 2, 2);
  }
#elif GW_FAULT == 4
  static float hsum(f a) {
    float each[W], sum = 0;
    store(each, a);
    for (int i = 1; i < W; ++i) sum += each[i];
    return sum;
  }
#elif GW_FAULT == 5
  static f pow2(f n) { return Sound::pow2(add(n, set1(1.0f))); }
#elif GW_FAULT == 6
  static f dot(words a, words b, f c) {
    uint16_t pairs[2 * W];
    memcpy(pairs, &a, sizeof pairs);
    for (int l = 0; l < W; ++l) pairs[2 * l] = 0;
    return Sound::dot(load_words(pairs), b, c);
  }
#elif GW_FAULT == 7
  static void mxfp4_words(words codes, words out[4]) {
    uint8_t bytes[4 * W];
    memcpy(bytes, &codes, sizeof bytes);
    Sound::mxfp4_words(load_words(Swapped(bytes).bytes), out);
  }
#endif
};
#include "table.hpp"
}  // namespace

extern const Kernels GW_KERNELS;
constexpr Kernels GW_KERNELS = table(GW_ISA);
