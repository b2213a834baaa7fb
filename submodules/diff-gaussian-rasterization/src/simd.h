// A row of pixels as SIMD registers. float: AVX-512 or AVX2 when the compiler targets them, else
// the vectors of GCC and Clang (SSE2, NEON); double and other compilers: short arrays.
//
// Compiled once per level (native/isa.h): `Pack` is another type at each.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512DQ__) || defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

namespace gr {
namespace NATIVE_LEVEL {

// 2^x on [-0.5, 0.5] is 1 + x * q(x); relative error 9e-8, exact at 0. With what is rounded on the
// way, a power of 2 is within 2.2 units of its last place.
constexpr float kExp2[5] = {0.693146977597679f, 0.24022242083111778f, 0.055507337444709925f,
                            0.009671512785778654f, 0.00132647272527113f};
constexpr float kMinExponent = -126.0f;  // below it 2^x is not a normal float

// ------------------------------------------------------------------------------- portable
template <typename S>
struct Pack {
  static constexpr int lanes = 4;
  struct Mask {
    bool m[lanes];
  };
  S v[lanes];
};

#define GR_LANES(expr)                                    \
  for (int i = 0; i < Pack<S>::lanes; ++i) { r.v[i] = (expr); }

template <typename S>
inline Pack<S> broadcast(S x, Pack<S>) {
  Pack<S> r;
  GR_LANES(x)
  return r;
}
template <typename S>
inline Pack<S> load(const S* p, Pack<S>) {
  Pack<S> r;
  GR_LANES(p[i])
  return r;
}
template <typename S>
inline void store(S* p, Pack<S> a) {
  for (int i = 0; i < Pack<S>::lanes; ++i) p[i] = a.v[i];
}
template <typename S>
inline Pack<S> operator+(Pack<S> a, Pack<S> b) {
  Pack<S> r;
  GR_LANES(a.v[i] + b.v[i])
  return r;
}
template <typename S>
inline Pack<S> operator-(Pack<S> a, Pack<S> b) {
  Pack<S> r;
  GR_LANES(a.v[i] - b.v[i])
  return r;
}
template <typename S>
inline Pack<S> operator*(Pack<S> a, Pack<S> b) {
  Pack<S> r;
  GR_LANES(a.v[i] * b.v[i])
  return r;
}
template <typename S>
inline Pack<S> operator/(Pack<S> a, Pack<S> b) {
  Pack<S> r;
  GR_LANES(a.v[i] / b.v[i])
  return r;
}
template <typename S>
inline Pack<S> fma(Pack<S> a, Pack<S> b, Pack<S> c) {
  Pack<S> r;
  GR_LANES(a.v[i] * b.v[i] + c.v[i])
  return r;
}
// c - a b.
template <typename S>
inline Pack<S> fnma(Pack<S> a, Pack<S> b, Pack<S> c) {
  Pack<S> r;
  GR_LANES(c.v[i] - a.v[i] * b.v[i])
  return r;
}
template <typename S>
inline Pack<S> min(Pack<S> a, Pack<S> b) {
  Pack<S> r;
  GR_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i])
  return r;
}
template <typename S>
inline Pack<S> minus_abs(Pack<S> a) {
  Pack<S> r;
  GR_LANES(-std::fabs(a.v[i]))
  return r;
}
// 2^x for x <= 0.
template <typename S>
inline Pack<S> exp2_of(Pack<S> a) {
  Pack<S> r;
  GR_LANES(std::exp2(a.v[i]))
  return r;
}
template <typename S>
inline typename Pack<S>::Mask at_least(Pack<S> a, Pack<S> b) {
  typename Pack<S>::Mask r;
  for (int i = 0; i < Pack<S>::lanes; ++i) r.m[i] = a.v[i] >= b.v[i];
  return r;
}
template <typename S>
inline Pack<S> select(typename Pack<S>::Mask m, Pack<S> a, Pack<S> b) {
  Pack<S> r;
  GR_LANES(m.m[i] ? a.v[i] : b.v[i])
  return r;
}
// `a`, or 0.
template <typename S>
inline Pack<S> masked(typename Pack<S>::Mask m, Pack<S> a) {
  Pack<S> r;
  GR_LANES(m.m[i] ? a.v[i] : S(0))
  return r;
}
template <typename M, std::size_t = sizeof(M::m)>
inline M both(M a, M b) {
  M r;
  for (unsigned i = 0; i < sizeof(r.m); ++i) r.m[i] = a.m[i] && b.m[i];
  return r;
}
template <typename M, std::size_t = sizeof(M::m)>
inline bool any(M a) {
  bool r = false;
  for (unsigned i = 0; i < sizeof(a.m); ++i) r = r || a.m[i];
  return r;
}
template <typename S>
inline S sum(Pack<S> a) {
  S r = a.v[0];
  for (int i = 1; i < Pack<S>::lanes; ++i) r += a.v[i];
  return r;
}
template <typename S>
inline void sum_four(const Pack<S>* a, S* out) {
  for (int k = 0; k < 4; ++k) out[k] = sum(a[k]);
}
#undef GR_LANES

// -------------------------------------------------------------------------------- AVX-512
#if defined(__AVX512F__) && defined(__AVX512DQ__)
template <>
struct Pack<float> {
  static constexpr int lanes = 16;
  using Mask = __mmask16;
  __m512 v;
};
using F = Pack<float>;

inline F broadcast(float x, F) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p, F) { return {_mm512_load_ps(p)}; }
inline void store(float* p, F a) { _mm512_store_ps(p, a.v); }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F minus_abs(F a) { return {_mm512_or_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline F::Mask at_least(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline F select(F::Mask m, F a, F b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
inline F masked(F::Mask m, F a) { return {_mm512_maskz_mov_ps(m, a.v)}; }
inline F::Mask both(F::Mask a, F::Mask b) { return a & b; }
inline bool any(F::Mask m) { return m != 0; }
// 2^x is 2^floor(k) 2^(k - floor(k)) 2^(x - k), k the nearest multiple of 1/32: the second factor from
// a table of two registers, the third by 1 + r (a + b r), relative error 5.4e-8; all within 1.8 units
// of the last place. Half as long to wait for as the polynomial of the others, two multiply-adds less.
alignas(64) constexpr float kPowers[32] = {
    1.0f, 1.0218972f, 1.0442737f, 1.06714046f, 1.09050775f, 1.1143868f, 1.1387886f, 1.1637249f,
    1.18920712f, 1.21524739f, 1.24185777f, 1.26905096f, 1.2968396f, 1.32523668f, 1.35425556f,
    1.38390994f, 1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,
    1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.83400810f,
    1.87416768f, 1.91520655f, 1.9571442f};
inline F exp2_of(F x) {
  constexpr float to_step = 393216.0f;  // 1.5 * 2^18: adding it leaves multiples of 1/32
  constexpr int steps = 5 << 4 | _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512 k = _mm512_roundscale_ps(x.v, steps), r = _mm512_sub_ps(x.v, k);
  // The lowest five bits are those of 32 (k - floor(k)), and the only ones that are looked at.
  const __m512i step = _mm512_castps_si512(_mm512_add_ps(x.v, _mm512_set1_ps(to_step)));
  const __m512 power =
      _mm512_permutex2var_ps(_mm512_load_ps(kPowers), step, _mm512_load_ps(kPowers + 16));
  const __m512 q = _mm512_fmadd_ps(_mm512_set1_ps(0.24022649f), r, _mm512_set1_ps(0.69315732f));
  return {_mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(power, r), q, power), k)};
}
inline float sum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
// In each quarter, the sums of two packs by turns.
inline __m512 sum_pairs(F a, F b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
}
inline void sum_four(const F* a, float* out) {
  const __m512 ab = sum_pairs(a[0], a[1]), cd = sum_pairs(a[2], a[3]);
  const __m512 low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
  const __m512 all = _mm512_add_ps(low, high);
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

// ----------------------------------------------------------------------------------- AVX2
#elif defined(__AVX2__) && defined(__FMA__)
template <>
struct Pack<float> {
  static constexpr int lanes = 8;
  struct Mask {
    __m256 bits;
  };
  __m256 v;
};
using F = Pack<float>;

inline F broadcast(float x, F) { return {_mm256_set1_ps(x)}; }
inline F load(const float* p, F) { return {_mm256_load_ps(p)}; }
inline void store(float* p, F a) { _mm256_store_ps(p, a.v); }
inline F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F fnma(F a, F b, F c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F minus_abs(F a) { return {_mm256_or_ps(a.v, _mm256_set1_ps(-0.0f))}; }
inline F::Mask at_least(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline F select(F::Mask m, F a, F b) { return {_mm256_blendv_ps(b.v, a.v, m.bits)}; }
// Of a `select` with 0, GCC compares the mask's signs with 0 first.
inline F masked(F::Mask m, F a) { return {_mm256_and_ps(m.bits, a.v)}; }
inline F::Mask both(F::Mask a, F::Mask b) { return {_mm256_and_ps(a.bits, b.bits)}; }
inline bool any(F::Mask m) { return _mm256_movemask_ps(m.bits) != 0; }
inline F exp2_of(F x) {
  const __m256 low = _mm256_max_ps(x.v, _mm256_set1_ps(kMinExponent));
  const __m256 whole = _mm256_round_ps(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 rest = _mm256_sub_ps(low, whole);
  __m256 q = _mm256_set1_ps(kExp2[4]);
  for (int i = 3; i >= 0; --i) q = _mm256_fmadd_ps(q, rest, _mm256_set1_ps(kExp2[i]));
  q = _mm256_fmadd_ps(q, rest, _mm256_set1_ps(1.0f));
  const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(q), power))};
}
inline float sum(F a) {
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline void sum_four(const F* a, float* out) {
  const __m256 ab = _mm256_hadd_ps(a[0].v, a[1].v), cd = _mm256_hadd_ps(a[2].v, a[3].v);
  const __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

// ------------------------------------------------- vectors of GCC and Clang: SSE2, NEON, ...
#elif defined(__GNUC__) || defined(__clang__)
typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

template <>
struct Pack<float> {
  static constexpr int lanes = 4;
  struct Mask {
    Int4 bits;
  };
  Float4 v;
};
using F = Pack<float>;

inline F broadcast(float x, F) { return {Float4{x, x, x, x}}; }
inline F load(const float* p, F) { return {*reinterpret_cast<const Float4*>(p)}; }
inline void store(float* p, F a) { *reinterpret_cast<Float4*>(p) = a.v; }
inline F operator+(F a, F b) { return {a.v + b.v}; }
inline F operator-(F a, F b) { return {a.v - b.v}; }
inline F operator*(F a, F b) { return {a.v * b.v}; }
inline F operator/(F a, F b) { return {a.v / b.v}; }
inline F fma(F a, F b, F c) { return {a.v * b.v + c.v}; }
inline F fnma(F a, F b, F c) { return {c.v - a.v * b.v}; }
inline F::Mask at_least(F a, F b) { return {a.v >= b.v}; }
inline F select(F::Mask m, F a, F b) {
  return {(Float4)((m.bits & (Int4)a.v) | (~m.bits & (Int4)b.v))};
}
inline F masked(F::Mask m, F a) { return {(Float4)(m.bits & (Int4)a.v)}; }
inline F min(F a, F b) { return select({a.v < b.v}, a, b); }
inline F minus_abs(F a) { return {(Float4)((Int4)a.v | (Int4)broadcast(-0.0f, F()).v)}; }
inline F::Mask both(F::Mask a, F::Mask b) { return {a.bits & b.bits}; }
inline bool any(F::Mask m) {
  typedef std::int64_t Long2 __attribute__((vector_size(16)));
  const Long2 halves = (Long2)m.bits;
  return (halves[0] | halves[1]) != 0;
}
inline F exp2_of(F x) {
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F low = select({x.v < kMinExponent}, broadcast(kMinExponent, F()), x);
  const Float4 shifted = low.v + to_integer;
  const Float4 rest = low.v - (shifted - to_integer);
  Float4 q = broadcast(kExp2[4], F()).v;
  for (int i = 3; i >= 0; --i) q = q * rest + kExp2[i];
  return {(Float4)((Int4)(q * rest + 1.0f) + ((Int4)shifted << 23))};
}
inline float sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
#endif

// The sums over the lanes of N packs.
template <int N, typename S>
inline void sum_each(const Pack<S>* packs, S* out) {
  int k = 0;
  for (; k + 4 <= N; k += 4) sum_four(packs + k, out + k);
  for (; k < N; ++k) out[k] = sum(packs[k]);
}

}  // namespace NATIVE_LEVEL
}  // namespace gr
