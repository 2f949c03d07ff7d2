// exp(x) and the logistic function, the same in every lane; exp is within 2 ulp.
//
//   x = n ln 2 + r,  |r| <= ln 2 / 2;   exp(x) = 2^n (1 + r + r² q(r)),   q a minimax polynomial
//
// ln 2 is split in two so that n · high is exact. 2^n is applied in two steps, so that results
// below 2^-126 come out rounded and those below half the least float come out as 0. NaN stays NaN.

inline Lanes::f exp(Lanes::f x) {
  using L = Lanes;
  L::f bounded = L::max(L::set1(-104.0f), L::min(L::set1(89.0f), x));
  L::f n = L::round(L::mul(bounded, L::set1(1.44269504f)));
  L::f r = L::fma(n, L::set1(-0.693359375f), bounded);
  r = L::fma(n, L::set1(2.12194440e-4f), r);
  L::f q = L::set1(0x1.6a2344p-10f);
  q = L::fma(q, r, L::set1(0x1.123a78p-7f));
  q = L::fma(q, r, L::set1(0x1.5558f6p-5f));
  q = L::fma(q, r, L::set1(0x1.555490p-3f));
  q = L::fma(q, r, L::set1(0x1.fffffcp-2f));
  L::f y = L::add(L::fma(L::mul(r, r), q, r), L::set1(1.0f));
  L::f half = L::round(L::mul(n, L::set1(0.5f)));
  y = L::mul(L::mul(y, L::pow2(half)), L::pow2(L::sub(n, half)));
  return L::select(L::less(x, L::set1(-104.0f)), L::zero(), y);
}

inline Lanes::f sigmoid(Lanes::f x) {
  using L = Lanes;
  return L::div(L::set1(1.0f), L::add(L::set1(1.0f), exp(L::sub(L::zero(), x))));
}
