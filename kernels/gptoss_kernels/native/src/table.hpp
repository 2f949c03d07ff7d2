// Every kernel, compiled for the lanes that were included before, and the table of them.

#include "exp.hpp"
#include "parallel.hpp"
#include "weights.hpp"
#include "linear.hpp"
#include "linear_backward.hpp"

constexpr Kernels table(const char* isa) {
  return {
      isa,
      linear,
      packed_linear,
      linear_backward,
      packed_linear_backward,
  };
}
