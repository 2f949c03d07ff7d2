// One element in and out of its stored type; rounded to nearest even, NaN as 0x7fc0.

inline float widen(float a) { return a; }

inline float widen(uint16_t a) {
  const uint32_t bits = uint32_t(a) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

inline void narrow(float a, float& out) { out = a; }

inline void narrow(float a, uint16_t& out) {
  uint32_t bits;
  memcpy(&bits, &a, 4);
  const uint32_t up = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out = uint16_t(a == a ? up : 0x7fc0);
}

// Element i of a tensor of T that may have any alignment.
template <class T>
inline float stored(const void* x, int64_t i) {
  T a;
  memcpy(&a, static_cast<const uint8_t*>(x) + i * int64_t(sizeof a), sizeof a);
  return widen(a);
}
