// Every kernel, compiled for the lanes that were included before, and the table of them.

#include "exp.hpp"
#include "parallel.hpp"
#include "weights.hpp"
#ifdef GW_PAIRS
#include "pairs.hpp"
#endif
#include "linear.hpp"
#include "linear_backward.hpp"
#include "swiglu.hpp"
#include "moe.hpp"
#include "moe_backward.hpp"
#include "element.hpp"
#include "attention.hpp"
#include "attention_call.hpp"
#include "norm.hpp"
#include "rope.hpp"
#include "route.hpp"
#include "lens.hpp"

constexpr Kernels table(const char* isa) {
  return {
      isa,
      linear,
      packed_linear,
      linear_backward,
      packed_linear_backward,
      attention,
      rms_norm,
      rotate,
      choose,
      weigh,
      lens,
      swiglu,
      swiglu_backward,
      moe_gate_up,
      moe_up,
      moe_down,
      moe_combine,
      moe_down_combine,
      moe,
      moe_backward,
      moe_combine_backward,
  };
}
