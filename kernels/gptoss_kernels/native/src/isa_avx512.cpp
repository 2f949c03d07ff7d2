#include <immintrin.h>

#include <cstring>

#include "abi.h"
#include "pool.hpp"
#include "seen_keys.hpp"

namespace {
#include "lanes_avx512.hpp"
#include "table.hpp"
}  // namespace

extern const Kernels kernels_avx512;
constexpr Kernels kernels_avx512 = table("avx512");
