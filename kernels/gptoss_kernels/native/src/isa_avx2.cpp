#include <immintrin.h>

#include <cstring>

#include "abi.h"
#include "pool.hpp"
#include "seen_keys.hpp"

namespace {
#include "lanes_avx2.hpp"
#include "table.hpp"
}  // namespace

extern const Kernels kernels_avx2;
constexpr Kernels kernels_avx2 = table("avx2");
