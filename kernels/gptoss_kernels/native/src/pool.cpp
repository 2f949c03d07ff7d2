#include "pool.hpp"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>

namespace gw {
namespace {

constexpr int MAX_THREADS = 256;
constexpr std::chrono::microseconds SPIN{20};

struct Job {
  Task task;
  const void* context;
  int64_t n;
  std::atomic<int64_t> next{0};
};

struct Pool {
  std::mutex lock;
  std::condition_variable wake, done;
  std::atomic<uint64_t> posted{0};
  std::atomic<int> inside{0};  // workers that hold `job`
  std::atomic<bool> busy{false};
  Job* job = nullptr;
  std::atomic<int> size{1};
  bool running[MAX_THREADS] = {};
};

// Never destroyed: workers outlive static destructors, and a fork leaves them behind.
Pool* pool = nullptr;
std::once_flag started;
thread_local bool in_task = false;

void start() {
  pool = new Pool;
  pthread_atfork(nullptr, nullptr, [] {
    int size = pool->size;
    pool = new Pool;
    pool->size.store(size);
    in_task = false;
  });
}

Pool& shared() {
  std::call_once(started, start);
  return *pool;
}

template <class Stop>
bool spin(Stop stop) {
  auto end = std::chrono::steady_clock::now() + SPIN;
  while (!stop()) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (std::chrono::steady_clock::now() > end) return stop();
  }
  return true;
}

void work(Job& job, int worker) {
  in_task = true;
  for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.n;)
    job.task(job.context, i, worker);
  in_task = false;
}

void live(Pool& p, int id) {
  uint64_t seen = 0;
  for (;;) {
    spin([&] { return p.posted.load(std::memory_order_acquire) != seen; });
    std::unique_lock<std::mutex> hold(p.lock);
    p.wake.wait(hold, [&] { return p.posted.load() != seen || id >= p.size; });
    if (id >= p.size) {
      p.running[id] = false;
      return;
    }
    seen = p.posted.load();
    Job* job = p.job;
    if (!job) continue;
    p.inside.fetch_add(1);
    hold.unlock();
    work(*job, id);
    if (p.inside.fetch_sub(1) == 1) {
      std::lock_guard<std::mutex> again(p.lock);
      p.done.notify_one();
    }
  }
}

void* enter(void* id) {
  live(*pool, int(reinterpret_cast<intptr_t>(id)));
  return nullptr;
}

// A worker that cannot be started is not missed: the others claim its share.
void hire(Pool& p) {
  for (int id = 1; id < p.size; ++id) {
    if (p.running[id]) continue;
    pthread_t thread;
    if (pthread_create(&thread, nullptr, enter, reinterpret_cast<void*>(intptr_t(id)))) return;
    pthread_detach(thread);
    p.running[id] = true;
  }
}

void alone(int64_t n, Task task, const void* context) {
  for (int64_t i = 0; i < n; ++i) task(context, i, 0);
}

struct Arena {
  void* data = nullptr;
  size_t size = 0;
  ~Arena() { std::free(data); }
};

}  // namespace

void run(int64_t n, Task task, const void* context) {
  Pool& p = shared();
  if (n < 2 || p.size < 2 || in_task || p.busy.exchange(true)) return alone(n, task, context);
  Job job{task, context, n};
  {
    std::lock_guard<std::mutex> hold(p.lock);
    hire(p);
    p.job = &job;
    p.posted.fetch_add(1, std::memory_order_release);
  }
  p.wake.notify_all();
  work(job, 0);
  std::unique_lock<std::mutex> hold(p.lock);
  p.job = nullptr;  // who has not come yet finds nothing and is not waited for
  hold.unlock();
  if (!spin([&] { return p.inside.load(std::memory_order_acquire) == 0; })) {
    hold.lock();
    p.done.wait(hold, [&] { return p.inside.load() == 0; });
  }
  p.busy.store(false, std::memory_order_release);
}

int threads() { return shared().size; }

void set_threads(int n) {
  Pool& p = shared();
  {
    std::lock_guard<std::mutex> hold(p.lock);
    p.size = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
  }
  p.wake.notify_all();
}

void* scratch(size_t bytes, int use) {
  thread_local Arena arenas[2];
  Arena& arena = arenas[use];
  if (bytes > arena.size || !arena.data) {
    std::free(arena.data);
    size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    arena.data = std::aligned_alloc(4096, size);
    arena.size = arena.data ? size : 0;
  }
  return arena.data;
}

}  // namespace gw
