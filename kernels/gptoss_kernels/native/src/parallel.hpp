// parallel(n, f): f(index, worker) for each index < n, spread over the pool.

template <class F>
inline void parallel(int64_t n, const F& f) {
  gw::run(
      n,
      [](const void* body, int64_t index, int worker) {
        (*static_cast<const F*>(body))(index, worker);
      },
      &f);
}
