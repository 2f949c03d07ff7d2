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
// Every kernel returns 0, 1 when its scratch memory could not be had, 2 for an index out of range.
// Tensors are contiguous; pointers may have any alignment. The result of an element has one order of summation, whatever
// the rows around it, the thread that computes it and the way the work is cut.
#pragma once

#include <cstdint>

#define GW_ABI 1

enum GwDtype : int32_t { GW_F32 = 0, GW_BF16 = 1 };

// One call of attention. q[batch, query, head, d_head], k and v[batch, key, kv_head, d_head] are
// `dtype` with heads side by side and strides (in elements) of their own; z is like q. Cubes are
// [batch, head, query, key] fp32, sink is [batch, head, query]. What is null is not wanted.
// Scores come from q and k or are `scores_in`; the pattern from scores and sinks[head] or is
// `pattern_in`; z from the pattern and v. Positions below 0 are padding; a window counts the query.
struct GwAttention {
  const void *q, *k, *v;
  void* z;
  const float* sinks;
  const int64_t *query_pos, *key_pos;  // [batch, query], [batch, key]
  const float *scores_in, *pattern_in;
  float *scores, *pattern, *sink;
  int64_t batch, n_query, n_key, heads, kv_heads, d_head, window;
  int64_t q_step[2], k_step[2], v_step[2];  // from row to row of the batch, from place to place
  int64_t dtype;
};

// One tile of the vocabulary, tokens start ... start + width - 1, and what was read so far.
struct GwLens {
  const float *logits, *final;  // [rows, width]; final, to be compared with, may be null
  const float* target;          // [rows] logits to be ranked, or null
  int64_t rows, width, start, k;
  float *top, *total, *mean;                 // [rows] of logits: maximum, Σ w, Σ w · logit
  float *final_top, *final_total, *across;   // [rows] of final: maximum, Σ w, Σ w · (final - logit)
  float* values;                             // [rows, k] the largest logits, best first
  int64_t *tokens, *ahead;                   // [rows, k] theirs; [rows] how many exceed the target
};

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

  // Mixes the values that each query sees, and whatever else the call asks for.
  int32_t (*attention)(const GwAttention* call);

  // y = x / scale · weight with scale[rows] = sqrt(mean x² + eps) over d; y and scale may be null.
  int32_t (*rms_norm)(const void* x, int32_t dtype, int64_t rows, int64_t d, const void* weight,
                      int32_t weight_dtype, float eps, float* scale, void* y);

  // Turns the pairs (i, i + d_head/2) of x[tokens, heads, d_head]; cos, sin[tokens, d_head/2].
  int32_t (*rotate)(const void* x, int32_t dtype, int64_t tokens, int64_t heads, int64_t d_head,
                    const float* cos, const float* sin, void* y);

  // best[rows, k]: the k largest of each row, ties to the lower expert, NaN first.
  int32_t (*choose)(const float* logits, int64_t rows, int64_t experts, int64_t k, int64_t* best);

  // weights[rows, k]: softmax over the chosen logits; 2 if an index names no expert.
  int32_t (*weigh)(const float* logits, int64_t rows, int64_t experts, const int64_t* chosen,
                   int64_t k, float* weights);

  // Takes one more tile of logits into what was read so far.
  int32_t (*lens)(const GwLens* call);

  // post[n] = swiglu(gate[n], up[n]), and its gradient.
  int32_t (*swiglu)(const float* gate, const float* up, int64_t n, float limit, void* post,
                    int32_t dtype);
  int32_t (*swiglu_backward)(const float* grad, const float* gate, const float* up, int64_t n,
                             float limit, float* grad_gate, float* grad_up);

  // The mixture of experts, one stage each. A row is a (token, slot) pair; indices[tokens, k] names
  // its expert. blocks[experts, outer, inner/32, 16], scales without the last axis,
  // bias[experts, outer].
  // gate and up [tokens, k, d_ff]: the even and odd outputs of x[tokens, d_model] through its experts.
  int32_t (*moe_gate_up)(const void* x, int32_t x_dtype, int64_t tokens, int64_t k,
                         const int64_t* indices, int64_t experts, const void* blocks,
                         const void* scales, const void* bias, int32_t bias_dtype, int64_t d_ff,
                         int64_t d_model, float* gate, float* up);
  // post[tokens, k, d_ff] in the dtype of x: swiglu of those, which are never stored.
  int32_t (*moe_up)(const void* x, int32_t x_dtype, int64_t tokens, int64_t k,
                    const int64_t* indices, int64_t experts, const void* blocks,
                    const void* scales, const void* bias, int32_t bias_dtype, int64_t d_ff,
                    int64_t d_model, float limit, void* post);
  // out[rows, d_model] from post[rows, d_ff].
  int32_t (*moe_down)(const void* post, int32_t post_dtype, int64_t rows, const int64_t* indices,
                      int64_t experts, const void* blocks, const void* scales, const void* bias,
                      int32_t bias_dtype, int64_t d_model, int64_t d_ff, float* out);
  // y[tokens, d_model] = sum over slots, in order, of weights[tokens, k] · out[tokens, k, d_model].
  int32_t (*moe_combine)(const float* out, const float* weights, int64_t tokens, int64_t k,
                         int64_t d_model, void* y, int32_t dtype);
  // These two in one, y in the dtype of post, some tokens at a time.
  int32_t (*moe_down_combine)(const void* post, int32_t dtype, int64_t tokens, int64_t k,
                              const int64_t* indices, const float* weights, int64_t experts,
                              const void* blocks, const void* scales, const void* bias,
                              int32_t bias_dtype, int64_t d_model, int64_t d_ff, void* y);
  // All three in one, y in the dtype of x, some tokens at a time.
  int32_t (*moe)(const void* x, int32_t dtype, int64_t tokens, int64_t k, const int64_t* indices,
                 const float* weights, int64_t experts, const void* up_blocks,
                 const void* up_scales, const void* up_bias, int32_t up_bias_dtype,
                 const void* down_blocks, const void* down_scales, const void* down_bias,
                 int32_t down_bias_dtype, int64_t d_ff, int64_t d_model, float limit, void* y);
  // grad_x[rows, inner] = grad[rows, outer] · W of each row's expert.
  int32_t (*moe_backward)(const float* grad, int64_t rows, const int64_t* indices,
                          int64_t experts, const void* blocks, const void* scales, int64_t outer,
                          int64_t inner, void* grad_x, int32_t dtype);
  int32_t (*moe_combine_backward)(const float* grad, const float* out, const float* weights,
                                  int64_t tokens, int64_t k, int64_t d_model, float* grad_out,
                                  float* grad_weights);
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
