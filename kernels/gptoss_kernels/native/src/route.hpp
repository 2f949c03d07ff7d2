// The k best experts of a token and their weights; the formula is in gptoss_kernels/route.py.

// NaN comes first, as in torch.sort; equal logits leave the lower expert ahead.
inline bool ahead(float a, float b) { return a != a ? b == b : a > b; }

inline void choose_row(const float* logits, int64_t experts, int64_t k, int64_t* best) {
  int64_t taken = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (taken == k && !ahead(logits[e], logits[best[k - 1]])) continue;
    int64_t place = taken < k ? taken++ : k - 1;
    for (; place && ahead(logits[e], logits[best[place - 1]]); --place)
      best[place] = best[place - 1];
    best[place] = e;
  }
}

int32_t choose(const float* logits, int64_t rows, int64_t experts, int64_t k, int64_t* best) {
  for (int64_t row = 0; row < rows; ++row)
    choose_row(logits + row * experts, experts, k, best + row * k);
  return 0;
}

inline void soften_row(float* x, int64_t n) {
  using L = Lanes;
  float top = x[0], total = 0;
  for (int64_t j = 1; j < n; ++j) top = ahead(x[j], top) ? x[j] : top;
  for (int64_t j = 0; j < n; j += L::W) {
    float part[L::W] = {};
    for (int64_t l = 0; l < L::W && j + l < n; ++l) part[l] = x[j + l] - top;
    L::store(part, exp(L::load(part)));
    for (int64_t l = 0; l < L::W && j + l < n; ++l) total += x[j + l] = part[l];
  }
  for (int64_t j = 0; j < n; ++j) x[j] /= total;
}

// Softmax over the chosen logits of each row; 2 if an index names no expert.
int32_t weigh(const float* logits, int64_t rows, int64_t experts, const int64_t* chosen, int64_t k,
              float* weights) {
  for (int64_t i = 0; i < rows * k; ++i) {
    if (chosen[i] < 0 || chosen[i] >= experts) return 2;
    weights[i] = logits[i / k * experts + chosen[i]];
  }
  for (int64_t row = 0; row < rows; ++row) soften_row(weights + row * k, k);
  return 0;
}
