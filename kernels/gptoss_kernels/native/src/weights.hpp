// How stored weights lie: chunks of V vectors along `inner`, each format in the order in which its
// bytes come apart without leaving their place. The activation row is put in that order once
// (`pack`), so weights are read as they lie in the mapped file.
//
//   place(v, l)           which element of the chunk is lane l of vector v
//   load(row, chunk, w)   a whole chunk as V vectors of fp32, for MXFP4 not yet scaled
//   tail(row, chunk, w)   the last, incomplete chunk, padded with zeros
//   scale(row, chunk)     MXFP4 only: the factor of each lane

using f = Lanes::f;
constexpr int W = Lanes::W;

struct Fp32 {
  static constexpr int V = 2, CHUNK = V * W;
  static constexpr bool SCALED = false;
  const uint8_t* data;
  int64_t inner;

  static constexpr int place(int v, int l) { return v * W + l; }
  const uint8_t* at(int64_t row, int64_t chunk) const {
    return data + 4 * (row * inner + chunk * CHUNK);
  }
  void load(int64_t row, int64_t chunk, f w[V]) const { widen(at(row, chunk), w); }
  void tail(int64_t row, int64_t chunk, f w[V]) const {
    uint8_t padded[4 * CHUNK] = {};
    memcpy(padded, at(row, chunk), size_t(4 * (inner % CHUNK)));
    widen(padded, w);
  }
  static void widen(const uint8_t* p, f w[V]) {
    for (int v = 0; v < V; ++v) w[v] = Lanes::load(reinterpret_cast<const float*>(p) + v * W);
  }
};

struct Bf16 {
  static constexpr int V = 2, CHUNK = V * W;
  static constexpr bool SCALED = false;
  const uint8_t* data;
  int64_t inner;

  static constexpr int place(int v, int l) { return 2 * l + v; }
  const uint8_t* at(int64_t row, int64_t chunk) const {
    return data + 2 * (row * inner + chunk * CHUNK);
  }
  void load(int64_t row, int64_t chunk, f w[V]) const { widen(at(row, chunk), w); }
  void tail(int64_t row, int64_t chunk, f w[V]) const {
    uint8_t padded[2 * CHUNK] = {};
    memcpy(padded, at(row, chunk), size_t(2 * (inner % CHUNK)));
    widen(padded, w);
  }
  static void widen(const uint8_t* p, f w[V]) {
    Lanes::bf16_pair(reinterpret_cast<const uint16_t*>(p), w[0], w[1]);
  }
};

struct Mxfp4 {
  static constexpr int V = 8, CHUNK = V * W, BLOCKS = CHUNK / 32;
  static constexpr bool SCALED = true;
  const uint8_t* data;
  int64_t inner;
  const uint8_t* factors;

  static constexpr int place(int v, int l) { return Lanes::mxfp4_place(v, l); }
  const uint8_t* at(int64_t row, int64_t chunk) const {
    return data + (row * inner + chunk * CHUNK) / 2;
  }
  void load(int64_t row, int64_t chunk, f w[V]) const { Lanes::mxfp4(at(row, chunk), w); }
  void tail(int64_t row, int64_t chunk, f w[V]) const {
    uint8_t padded[CHUNK / 2] = {};
    memcpy(padded, at(row, chunk), size_t(inner % CHUNK / 2));
    Lanes::mxfp4(padded, w);
  }
  f scale(int64_t row, int64_t chunk) const {
    const uint8_t* p = factors + (row * inner + chunk * CHUNK) / 32;
    if ((chunk + 1) * CHUNK <= inner) return Lanes::scales(p);
    uint8_t padded[BLOCKS] = {};
    memcpy(padded, p, size_t(inner % CHUNK / 32));
    return Lanes::scales(padded);
  }
  // The weights of expert `i` among equals of [outer, inner].
  Mxfp4 expert(int64_t i, int64_t outer) const {
    return {data + i * outer * inner / 2, inner, factors + i * outer * inner / 32};
  }
};

template <class F>
inline int64_t chunks(const F& w) {
  return (w.inner + F::CHUNK - 1) / F::CHUNK;
}

template <class F>
inline void any_chunk(const F& w, int64_t row, int64_t chunk, f out[]) {
  (chunk + 1) * F::CHUNK <= w.inner ? w.load(row, chunk, out) : w.tail(row, chunk, out);
}

inline float element(const void* x, int32_t dtype, int64_t i) {
  float a = 0;
  if (dtype == GW_F32) {
    memcpy(&a, static_cast<const uint8_t*>(x) + 4 * i, 4);
  } else {
    memcpy(reinterpret_cast<uint8_t*>(&a) + 2, static_cast<const uint8_t*>(x) + 2 * i, 2);
  }
  return a;
}

inline const void* offset(const void* x, int32_t dtype, int64_t i) {
  return static_cast<const uint8_t*>(x) + (dtype == GW_F32 ? 4 : 2) * i;
}

inline void* offset(void* x, int32_t dtype, int64_t i) {
  return static_cast<uint8_t*>(x) + (dtype == GW_F32 ? 4 : 2) * i;
}

// n floats to x[0 .. n), rounded once when x is bfloat16.
inline void put(void* x, int32_t dtype, const float* from, int64_t n) {
  if (dtype == GW_F32) {
    memcpy(x, from, size_t(4 * n));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(x);
  int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store_bf16(to + i, Lanes::load(from + i));
  if (i == n) return;
  float rest[W] = {};
  uint16_t narrow[W];
  memcpy(rest, from + i, size_t(4 * (n - i)));
  Lanes::store_bf16(narrow, Lanes::load(rest));
  memcpy(to + i, narrow, size_t(2 * (n - i)));
}

// One activation row in the order of the format, zero beyond `inner`.
template <class F>
inline void pack(const F& w, const void* x, int32_t dtype, float* out) {
  for (int64_t c = 0, n = chunks(w); c < n; ++c)
    for (int v = 0; v < F::V; ++v)
      for (int l = 0; l < W; ++l) {
        int64_t k = c * F::CHUNK + F::place(v, l);
        *out++ = k < w.inner ? element(x, dtype, k) : 0.0f;
      }
}

template <class F>
inline void pack_rows(const F& w, const void* x, int32_t dtype, int64_t rows, float* out) {
  constexpr int64_t STEP = 8;
  int64_t stride = chunks(w) * F::CHUNK;
  parallel((rows + STEP - 1) / STEP, [&](int64_t i, int) {
    for (int64_t r = i * STEP; r < rows && r < (i + 1) * STEP; ++r)
      pack(w, offset(x, dtype, r * w.inner), dtype, out + r * stride);
  });
}
