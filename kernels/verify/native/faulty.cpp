// The kernels of one instruction set with a lane that is wrong on purpose: what a check must catch.
//
//   GW_LANES, GW_KERNELS, GW_ISA    the header of the lanes, the name of the table and of the ISA
//   GW_FAULT                        1 nibbles swapped   2 block scale dropped   3 bfloat16 cut off
//                                   4 one lane missing in sums   5 exponent one too high
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
#define Lanes Sound
#include GW_LANES
#undef Lanes

struct Lanes : Sound {
#if GW_FAULT == 1
  static void mxfp4(const uint8_t* p, f out[8]) {
    mxfp4_low(p, out);
    mxfp4_high(p, out + 4);
  }
  static void mxfp4_low(const uint8_t* p, f out[4]) { Sound::mxfp4_low(Swapped(p).bytes, out); }
  static void mxfp4_high(const uint8_t* p, f out[4]) { Sound::mxfp4_high(Swapped(p).bytes, out); }
  struct Swapped {
    uint8_t bytes[4 * W];
    explicit Swapped(const uint8_t* p) {
      for (int i = 0; i < 4 * W; ++i) bytes[i] = uint8_t(p[i] << 4 | p[i] >> 4);
    }
  };
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
#endif
};
#include "table.hpp"
}  // namespace

extern const Kernels GW_KERNELS;
constexpr Kernels GW_KERNELS = table(GW_ISA);
