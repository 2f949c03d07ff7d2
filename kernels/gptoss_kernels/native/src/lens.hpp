// What rows of logits say, taken in one tile of the vocabulary after the other; the formulas are in
// native/lens.py.
//
// Sums run with a running maximum (Milakov and Gimelshein, arXiv 1805.02867); a tile is one step,
// so the caller's tile width, which never changes, fixes their order.

constexpr float NO_LOGIT = -__builtin_huge_valf();

inline float tile_top(const float* x, int64_t n) {
  float top = NO_LOGIT;
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// total += sum of w, mean += sum of w y with w = exp(x - top).
inline void add_tile(const float* x, const float* y, int64_t n, float top, float& total,
                     float& mean) {
  using L = Lanes;
  L::f weights = L::zero(), products = L::zero();
  for (int64_t i = 0; i < n; i += L::W) {
    float a[L::W], b[L::W];
    for (int64_t l = 0; l < L::W; ++l) {
      a[l] = i + l < n ? x[i + l] - top : NO_LOGIT;
      b[l] = i + l < n ? y[i + l] : 0.0f;
    }
    const L::f w = exp(L::load(a));
    weights = L::add(weights, w);
    products = L::fma(w, L::load(b), products);
  }
  total += L::hsum(weights);
  mean += L::hsum(products);
}

// One more tile of a running sum; y is what exp(x - top) weighs.
inline void run_on(const float* x, const float* y, int64_t n, float* top, float* total,
                   float* mean) {
  const float before = *top, here = tile_top(x, n);
  *top = here > before ? here : before;
  float shrink[Lanes::W];
  Lanes::store(shrink, exp(Lanes::set1(before - *top)));
  *total *= shrink[0];
  *mean *= shrink[0];
  add_tile(x, y, n, *top, *total, *mean);
}

// The k largest so far, best first; of equal logits the lower token leads.
inline void keep_best(const float* x, int64_t n, int64_t start, int64_t k, float* values,
                      int64_t* tokens) {
  int64_t taken = start < k ? start : k;
  for (int64_t i = 0; i < n; ++i) {
    if (taken == k && !ahead(x[i], values[k - 1])) continue;
    int64_t place = taken < k ? taken++ : k - 1;
    for (; place && ahead(x[i], values[place - 1]); --place) {
      values[place] = values[place - 1];
      tokens[place] = tokens[place - 1];
    }
    values[place] = x[i];
    tokens[place] = start + i;
  }
}

inline void read_row(const GwLens& c, int64_t row, float* apart) {
  const float* x = c.logits + row * c.width;
  run_on(x, x, c.width, c.top + row, c.total + row, c.mean + row);
  keep_best(x, c.width, c.start, c.k, c.values + row * c.k, c.tokens + row * c.k);
  if (c.target)
    for (int64_t i = 0; i < c.width; ++i) c.ahead[row] += x[i] > c.target[row];
  if (!c.final) return;
  const float* end = c.final + row * c.width;
  for (int64_t i = 0; i < c.width; ++i) apart[i] = end[i] - x[i];
  run_on(end, apart, c.width, c.final_top + row, c.final_total + row, c.across + row);
}

inline int32_t lens(const GwLens* call) {
  const GwLens& c = *call;
  bool failed[1] = {false};  // only ever set to true
  parallel(c.rows, [&](int64_t row, int) {
    float* apart = static_cast<float*>(gw::scratch(size_t(c.width) * sizeof(float)));
    if (apart) read_row(c, row, apart);
    else __atomic_store_n(failed, true, __ATOMIC_RELAXED);
  });
  return failed[0];
}
