// What crosses the boundary between Python and C++: one struct of function pointers, a line an op.
//
// A new op is added in four places:
//   1. its kernel, a template over the lanes, in a header here (attention.hpp, moe.hpp, ...);
//   2. a documented member at the end of `Kernels` below;
//   3. the same line in table.hpp (which also includes the header);
//   4. its argument types in KERNELS of ../library.py, same order.
//
// Headers: kernels see, in this order, the lanes of one ISA (lanes_*.hpp), exp.hpp, parallel.hpp
// (pool), weights.hpp (packed formats), linear.hpp. They are included inside an unnamed namespace,
// once per isa_*.cpp, and compiled with that ISA's flags: they include nothing themselves and use
// nothing of the standard library but <cstdint> and memcpy (an inline function of the library
// compiled for AVX-512 must never be the one a smaller CPU runs).
//
// Every kernel returns 0, or 1 when its scratch memory could not be had. Tensors are contiguous;
// pointers may have any alignment. The result of an element has one order of summation, whatever
// the rows around it, the thread that computes it and the way the work is cut.
#pragma once

#include <cstdint>

#define GW_ABI 1

enum GwDtype : int32_t { GW_F32 = 0, GW_BF16 = 1 };

struct Kernels {
  const char* isa;

  // out[rows, outer] = x[rows, inner] · Wᵀ + bias; W[outer, inner] fp32 or bf16. bias may be null.
  int32_t (*linear)(const void* x, int32_t x_dtype, int64_t rows, const void* weight,
                    int32_t weight_dtype, int64_t outer, int64_t inner, const void* bias,
                    int32_t bias_dtype, void* out, int32_t out_dtype);

  // out[rows, outer] fp32 = x[rows, inner] · Wᵀ; W in MXFP4: blocks[outer, inner/32, 16] bytes,
  // scales[outer, inner/32].
  int32_t (*packed_linear)(const void* x, int32_t x_dtype, int64_t rows, const void* blocks,
                           const void* scales, int64_t outer, int64_t inner, float* out);

  // grad_x[rows, inner] = grad[rows, outer] · W, summed over `outer` in order.
  int32_t (*linear_backward)(const float* grad, int64_t rows, const void* weight,
                             int32_t weight_dtype, int64_t outer, int64_t inner, void* grad_x,
                             int32_t x_dtype);

  // The same for MXFP4.
  int32_t (*packed_linear_backward)(const float* grad, int64_t rows, const void* blocks,
                                    const void* scales, int64_t outer, int64_t inner, void* grad_x,
                                    int32_t x_dtype);
};

#define GW_EXPORT extern "C" __attribute__((visibility("default")))

// Space-separated names of the ISAs that were built and that this CPU has, best first.
GW_EXPORT const char* gw_isas();
// The kernels of one ISA, or null if gw_isas() does not list it.
GW_EXPORT const Kernels* gw_kernels(const char* isa);
// At most so many threads, the caller's included, work on one call.
GW_EXPORT void gw_set_threads(int32_t n);
// Version of this interface and digest of the sources, as build.py wrote them.
GW_EXPORT int32_t gw_abi();
GW_EXPORT const char* gw_digest();
