#include <arm_neon.h>

#include <cstring>

#include "abi.h"
#include "pool.hpp"

namespace {
#include "lanes_neon.hpp"
#include "table.hpp"
}  // namespace

extern const Kernels kernels_neon;
constexpr Kernels kernels_neon = table("neon");
