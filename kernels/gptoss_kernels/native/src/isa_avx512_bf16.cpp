#include <immintrin.h>

#include <cstring>

#include "abi.h"
#include "pool.hpp"
#include "seen_keys.hpp"

namespace {
#define Lanes Avx512
#include "lanes_avx512.hpp"
#undef Lanes
#include "lanes_avx512_bf16.hpp"
#include "table.hpp"
}  // namespace

extern const Kernels kernels_avx512_bf16;
constexpr Kernels kernels_avx512_bf16 = table("avx512_bf16");
