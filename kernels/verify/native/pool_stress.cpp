// The thread pool under stress; a thread sanitizer watches, and every sum is checked.
//
//     pool_stress threads    callers side by side, nested calls, the size changing meanwhile
//     pool_stress fork       children forked while other threads are inside the pool
//     pool_stress race       tasks that share a counter: what a thread sanitizer must report
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "pool.hpp"

namespace {

constexpr int64_t MOST = 300;

struct Board {
  std::vector<int64_t> cell;
  int64_t depth;
};

void add_one(const void* context, int64_t index, int worker) {
  Board& board = *static_cast<Board*>(const_cast<void*>(context));
  if (worker < 0) std::abort();
  void* own = gw::scratch(size_t(64 + index));
  if (!own) std::abort();
  std::memset(own, int(index), size_t(64 + index));
  if (board.depth) {
    Board inner{std::vector<int64_t>(size_t(index % 5), 0), board.depth - 1};
    gw::run(index % 5, add_one, &inner);
    for (int64_t each : inner.cell)
      if (each != 1) std::abort();
  }
  board.cell[size_t(index)] += 1;
}

void run_once(int64_t n, int64_t depth) {
  Board board{std::vector<int64_t>(size_t(n), 0), depth};
  gw::run(n, add_one, &board);
  for (int64_t each : board.cell)
    if (each != 1) {
      std::fprintf(stderr, "pool_stress: an index of %lld ran %lld times\n",
                   static_cast<long long>(n), static_cast<long long>(each));
      std::abort();
    }
}

void stress(int rounds) {
  std::vector<std::thread> callers;
  for (int id = 0; id < 3; ++id)
    callers.emplace_back([=] {
      for (int i = 0; i < rounds; ++i) {
        if (id == 0) gw::set_threads(1 + i % 4);
        run_once((i * 37 + id) % MOST, i % 2);
      }
    });
  for (std::thread& caller : callers) caller.join();
}

int child() {
  gw::set_threads(3);
  for (int i = 0; i < 20; ++i) run_once(i * 7 % MOST, 1);
  return 0;
}

void fork_often(int rounds) {
  std::atomic<bool> stop{false};
  gw::set_threads(3);
  run_once(MOST, 0);
  std::thread other([&] {
    while (!stop) run_once(MOST, 0);
  });
  for (int i = 0; i < rounds; ++i) {
    pid_t id = fork();
    if (id < 0) std::abort();
    if (id == 0) {
      alarm(60);
      _exit(child());
    }
    int status = 0;
    if (waitpid(id, &status, 0) != id || status != 0) {
      std::fprintf(stderr, "pool_stress: child %d ended with status %d\n", i, status);
      std::exit(1);
    }
    run_once(MOST, 0);
  }
  stop = true;
  other.join();
}

void race() {
  int64_t counter = 0;
  gw::set_threads(4);
  for (int i = 0; i < 200; ++i)
    gw::run(
        MOST,
        [](const void* context, int64_t, int) {
          ++*static_cast<int64_t*>(const_cast<void*>(context));
          std::this_thread::yield();
        },
        &counter);
}

}  // namespace

int main(int count, char** word) {
  const char* mode = count > 1 ? word[1] : "";
  if (!std::strcmp(mode, "threads")) stress(400);
  else if (!std::strcmp(mode, "fork")) fork_often(40);
  else if (!std::strcmp(mode, "race")) race();
  else return 2;
  std::puts("every index ran once");
}
