// Threads that share the outputs of one call; never a sum.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gw {

using Task = void (*)(const void* context, int64_t index, int worker);

// Calls task(context, i, worker) once for each i < n, in any order, on up to threads() threads; the
// caller is worker 0. Callers that find the pool in use, and tasks themselves, run alone.
void run(int64_t n, Task task, const void* context);

int threads();
void set_threads(int n);

// Memory of the calling thread, 64-byte aligned, valid until its next call for the same use, 0 or 1;
// null if there is none.
void* scratch(size_t bytes, int use = 0);

}  // namespace gw
