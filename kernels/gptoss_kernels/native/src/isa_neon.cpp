#include <arm_neon.h>

#include <cstring>

#include "abi.h"
#include "pool.hpp"
#include "seen_keys.hpp"

namespace {
#include "lanes_neon.hpp"
#include "table.hpp"
}  // namespace

extern const Kernels kernels_neon;
constexpr Kernels kernels_neon = table("neon");
