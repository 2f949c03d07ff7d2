#include <cstring>

#include "abi.h"
#include "pool.hpp"
#include "seen_keys.hpp"

namespace {
#include "lanes_portable.hpp"
#include "table.hpp"
}  // namespace

extern const Kernels kernels_portable;
constexpr Kernels kernels_portable = table("portable");
