// Which ISAs this build has and this CPU runs. build.py defines GW_HAVE_<ISA> for those it built.
#include <string>

#include "abi.h"
#include "pool.hpp"

extern const Kernels kernels_portable;
#ifdef GW_HAVE_AVX2
extern const Kernels kernels_avx2;
#endif
#ifdef GW_HAVE_AVX512
extern const Kernels kernels_avx512;
#endif
#ifdef GW_HAVE_AVX512_BF16
extern const Kernels kernels_avx512_bf16;
#endif
#ifdef GW_HAVE_NEON
extern const Kernels kernels_neon;
#endif

namespace {

bool avx512() {
#if defined(GW_HAVE_AVX512) || defined(GW_HAVE_AVX512_BF16)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

// Best first.
template <class Visit>
void each_that_runs(Visit visit) {
  [[maybe_unused]] bool wide = avx512();
#ifdef GW_HAVE_AVX512_BF16
  if (wide && __builtin_cpu_supports("avx512bf16")) visit(kernels_avx512_bf16);
#endif
#ifdef GW_HAVE_AVX512
  if (wide) visit(kernels_avx512);
#endif
#ifdef GW_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) visit(kernels_avx2);
#endif
#ifdef GW_HAVE_NEON
  visit(kernels_neon);
#endif
  visit(kernels_portable);
}

}  // namespace

GW_EXPORT const char* gw_isas() {
  static const std::string names = [] {
    std::string found;
    each_that_runs([&](const Kernels& k) {
      found += (found.empty() ? "" : " ") + std::string(k.isa);
    });
    return found;
  }();
  return names.c_str();
}

GW_EXPORT const Kernels* gw_kernels(const char* isa) {
  const Kernels* found = nullptr;
  each_that_runs([&](const Kernels& k) { found = k.isa == std::string(isa) ? &k : found; });
  return found;
}

GW_EXPORT void gw_set_threads(int32_t n) { gw::set_threads(n); }
GW_EXPORT int32_t gw_abi() { return GW_ABI; }
GW_EXPORT const char* gw_digest() { return GW_DIGEST; }
