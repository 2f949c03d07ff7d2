// Scratch memory that is given back at once and holds exactly what was asked for, so that a
// sanitizer sees the first byte too far. pool.cpp is then compiled with -Dscratch=roomy_scratch.
#include <cstdlib>

#include "pool.hpp"

void* gw::scratch(size_t bytes, int use) {
  struct Held {
    void* memory = nullptr;
    ~Held() { std::free(memory); }
  };
  thread_local Held both[2];
  Held& held = both[use];
  std::free(held.memory);
  held.memory = nullptr;
  return posix_memalign(&held.memory, 64, bytes) ? nullptr : held.memory;
}
