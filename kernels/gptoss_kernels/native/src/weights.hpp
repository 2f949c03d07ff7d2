// How stored weights lie: chunks of V vectors along `inner`, each format in the order in which its
// bytes come apart without leaving their place. The activation row is put in that order once
// (`pack`), so weights are read as they lie in the mapped file.
//
//   place(v, l)           which element of the chunk is lane l of vector v
//   arrange(x, out)       a chunk of x in that order, out[v W + l] = x[place(v, l)]
//   row(n)                where row n begins
//   load(row, c, w)       chunk c as V vectors of fp32, for MXFP4 not yet scaled
//   load_part(row, c, v, w)  its vectors from v on, as many as come apart together
//   tail(row, c, n, w)    the last chunk, of which only n elements are there, the rest zero
//   scale(row, c)         MXFP4 only: the factor of each lane; scale_tail for the last chunk
//   PAIRS                 rows of x may be packed as bfloat16, see pairs.hpp

using f = Lanes::f;
constexpr int W = Lanes::W;

struct Fp32 {
  static constexpr int V = 2, CHUNK = V * W, BYTES = 4 * CHUNK;
  static constexpr bool SCALED = false, PAIRS = false;
  using Row = const uint8_t*;
  const uint8_t* data;
  int64_t inner;

  static constexpr int place(int v, int l) { return v * W + l; }
  static void arrange(const float* x, float* out) { memcpy(out, x, 4 * CHUNK); }
  Row row(int64_t n) const { return data + 4 * n * inner; }
  static const uint8_t* at(Row row, int64_t c) { return row + c * BYTES; }
  static void load(Row row, int64_t c, f w[V]) { widen(at(row, c), w); }
  static void load_part(Row row, int64_t c, int, f w[V]) { load(row, c, w); }
  static void tail(Row row, int64_t c, int n, f w[V]) {
    uint8_t padded[BYTES] = {};
    memcpy(padded, at(row, c), size_t(4 * n));
    widen(padded, w);
  }
  static void widen(const uint8_t* p, f w[V]) {
    for (int v = 0; v < V; ++v) w[v] = Lanes::load(reinterpret_cast<const float*>(p) + v * W);
  }
};

struct Bf16 {
  static constexpr int V = 2, CHUNK = V * W, BYTES = 2 * CHUNK;
  static constexpr bool SCALED = false, PAIRS = Lanes::PAIRS;
  using Row = const uint8_t*;
  const uint8_t* data;
  int64_t inner;

  static constexpr int place(int v, int l) { return 2 * l + v; }
  static void arrange(const float* x, float* out) {
    for (int l = 0; l < W; ++l) out[l] = x[2 * l], out[W + l] = x[2 * l + 1];
  }
  Row row(int64_t n) const { return data + 2 * n * inner; }
  static const uint8_t* at(Row row, int64_t c) { return row + c * BYTES; }
  static void load(Row row, int64_t c, f w[V]) { widen(at(row, c), w); }
  static void load_part(Row row, int64_t c, int, f w[V]) { load(row, c, w); }
  static void tail(Row row, int64_t c, int n, f w[V]) {
    uint8_t padded[BYTES] = {};
    memcpy(padded, at(row, c), size_t(2 * n));
    widen(padded, w);
  }
  static void widen(const uint8_t* p, f w[V]) {
    Lanes::bf16_pair(reinterpret_cast<const uint16_t*>(p), w[0], w[1]);
  }
};

struct Mxfp4 {
  static constexpr int V = 8, CHUNK = V * W, BYTES = CHUNK / 2, BLOCKS = CHUNK / 32;
  static constexpr bool SCALED = true, PAIRS = Lanes::PAIRS;
  struct Row {
    const uint8_t *data, *factors;
  };
  const uint8_t* data;
  int64_t inner;
  const uint8_t* factors;

  static constexpr int place(int v, int l) { return Lanes::mxfp4_place(v, l); }
  static void arrange(const float* x, float* out) { Lanes::mxfp4_order(x, out); }
  Row row(int64_t n) const { return {data + n * (inner / 32) * 16, factors + n * (inner / 32)}; }
  static const uint8_t* at(Row row, int64_t c) { return row.data + c * BYTES; }
  static void load(Row row, int64_t c, f w[V]) {
    load_part(row, c, 0, w);
    load_part(row, c, 4, w + 4);
  }
  static void load_part(Row row, int64_t c, int v, f w[4]) {
    v ? Lanes::mxfp4_high(at(row, c), w) : Lanes::mxfp4_low(at(row, c), w);
  }
  static void tail(Row row, int64_t c, int n, f w[V]) {
    uint8_t padded[BYTES] = {};
    memcpy(padded, at(row, c), size_t(n / 2));
    load({padded, nullptr}, 0, w);
  }
  static f scale(Row row, int64_t c) { return Lanes::scales(row.factors + c * BLOCKS); }
  static f scale_tail(Row row, int64_t c, int n) {
    uint8_t padded[BLOCKS] = {};
    memcpy(padded, row.factors + c * BLOCKS, size_t(n / 32));
    return Lanes::scales(padded);
  }
  // The weights of expert `i` among equals of [outer, inner].
  Mxfp4 expert(int64_t i, int64_t outer) const {
    return {row(i * outer).data, inner, row(i * outer).factors};
  }
};

template <class F>
inline int64_t chunks(const F& w) {
  return (w.inner + F::CHUNK - 1) / F::CHUNK;
}

// From one packed row of x to the next.
template <class F>
inline int64_t row_floats(const F& w) {
  return chunks(w) * F::CHUNK + (F::PAIRS ? W : 0);
}

// Any chunk of a row and its factors, which only MXFP4 has.
template <class F>
inline f any_chunk(const F& w, int64_t row, int64_t c, f out[]) {
  auto at = w.row(row);
  int64_t left = w.inner - c * F::CHUNK;
  left >= F::CHUNK ? F::load(at, c, out) : F::tail(at, c, int(left), out);
  if constexpr (F::SCALED)
    return left >= F::CHUNK ? F::scale(at, c) : F::scale_tail(at, c, int(left));
  else
    return Lanes::set1(1.0f);
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

inline void put_whole(void* x, int32_t dtype, f a) {
  if (dtype == GW_F32) Lanes::store(static_cast<float*>(x), a);
  else Lanes::store_bf16(static_cast<uint16_t*>(x), a);
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

// One activation row in the order of the format, zero beyond.
template <class F, class T>
inline void pack_row(const uint8_t* x, int64_t inner, float* out) {
  for (int64_t k = 0; k < inner; k += F::CHUNK, out += F::CHUNK) {
    T chunk[F::CHUNK] = {};
    float wide[F::CHUNK];
    const int64_t n = inner - k < F::CHUNK ? inner - k : F::CHUNK;
    if (n == F::CHUNK) memcpy(chunk, x + sizeof(T) * size_t(k), sizeof chunk);
    else memcpy(chunk, x + sizeof(T) * size_t(k), sizeof(T) * size_t(n));
    for (int i = 0; i < F::CHUNK; ++i) {
      const uint32_t bits = uint32_t(chunk[i]) << (32 - 8 * sizeof(T));
      memcpy(wide + i, &bits, 4);
    }
    F::arrange(wide, out);
  }
}

template <class F>
inline void pack(const F& w, const void* x, int32_t dtype, float* out) {
  const uint8_t* from = static_cast<const uint8_t*>(x);
  if (dtype == GW_F32) pack_row<F, uint32_t>(from, w.inner, out);
  else pack_row<F, uint16_t>(from, w.inner, out);
}

template <class F>
inline void pack_rows(const F& w, const void* x, int32_t dtype, int64_t rows, float* out) {
  constexpr int64_t STEP = 8;
  parallel((rows + STEP - 1) / STEP, [&](int64_t i, int) {
    for (int64_t r = i * STEP; r < rows && r < (i + 1) * STEP; ++r) {
      const void* from = offset(x, dtype, r * w.inner);
      float* to = out + r * row_floats(w);
      if constexpr (F::PAIRS) pack_either(w, from, dtype, to);
      else pack(w, from, dtype, to);
    }
  });
}
