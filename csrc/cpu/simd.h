// One vector width per build, in GCC/Clang vector extensions: the same source becomes SSE2, AVX2, AVX-512 or NEON.
// Intrinsics appear only where the extensions cannot express the instruction (half-precision conversion).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace bigkern {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Storage-only types: arithmetic happens in float. (_Float16 and __bf16 need newer compilers than we ask for.)
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct accumulate_type {
  using type = float;
};
template <>
struct accumulate_type<double> {
  using type = double;
};
// The type in which sums of T are kept: float for all but double.
template <class T>
using acc_t = typename accumulate_type<T>::type;

template <class T>
constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct vector_type {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using vec = typename vector_type<T>::type;

using vec_i32 = vec<int32_t>;
using vec_u32 = vec<uint32_t>;

// As many 16-bit values as a float vector has lanes.
typedef uint16_t vec_u16 __attribute__((vector_size(kVectorBytes / 2)));
// As many 8-bit values.
typedef int8_t vec_i8 __attribute__((vector_size(kVectorBytes / 4)));

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- scalar conversions -------------------------------------------------------------------------------------------

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(bfloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_acc(half x) {
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  uint32_t exponent_mantissa = uint32_t(x.bits & 0x7fff) << 13;
  // Moving the exponent by multiplying with 2^112 also normalises subnormals.
  float magnitude = bit_cast<float>(exponent_mantissa) * 0x1p112f;
  if ((x.bits & 0x7c00) == 0x7c00) magnitude = bit_cast<float>(exponent_mantissa | 0x7f800000);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}

template <class T>
inline T from_acc(acc_t<T> x);
template <>
inline float from_acc<float>(float x) {
  return x;
}
template <>
inline double from_acc<double>(double x) {
  return x;
}
template <>
inline bfloat16 from_acc<bfloat16>(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {uint16_t((bits >> 16) | 0x40)};  // rounding could carry a NaN into infinity
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline half from_acc<half>(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (bits < 0x38800000) {  // subnormal half: adding 0.5 aligns the mantissa, and the addition rounds half to even
    float shifted = bit_cast<float>(bits) + 0.5f;
    return {uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return {uint16_t(sign | ((bits - 0x38000000) >> 13))};
}

// ---- vector load and store ----------------------------------------------------------------------------------------

template <class A>
inline vec<A> broadcast(A x) {
  return x - vec<A>{};
}

inline vec<float> load(const float* p) {
  vec<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline vec<double> load(const double* p) {
  vec<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline vec<float> load(const bfloat16* p) {
  vec_u16 raw;
  std::memcpy(&raw, p, sizeof(raw));
  return bit_cast<vec<float>>(__builtin_convertvector(raw, vec_u32) << 16);
}
inline vec<float> load(const half* p) {
#if defined(__AVX512F__)
  return (vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vec<float> v;
  for (int lane = 0; lane < lanes<float>; ++lane) v[lane] = to_acc(p[lane]);
  return v;
#endif
}

inline vec<float> load(const int8_t* p) {
  vec_i8 raw;
  std::memcpy(&raw, p, sizeof(raw));
  return __builtin_convertvector(__builtin_convertvector(raw, vec_i32), vec<float>);
}

inline void store(float* p, vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(double* p, vec<double> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(bfloat16* p, vec<float> v) {
  vec_u32 bits = bit_cast<vec_u32>(v);
  vec_u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = v != v ? vec_u32{} + 0x7fc0 : rounded;  // rounding could carry a NaN into infinity
  vec_u16 narrow = __builtin_convertvector(rounded, vec_u16);
  std::memcpy(p, &narrow, sizeof(narrow));
}
inline void store(half* p, vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < lanes<float>; ++lane) p[lane] = from_acc<half>(v[lane]);
#endif
}

// The first `count` lanes (fewer than a full vector); the others are zero. Never touches memory past the end.
inline vec<float> load_partial(const int8_t* p, int64_t count) {
  int8_t buffer[lanes<float>] = {};
  std::memcpy(buffer, p, static_cast<size_t>(count));
  return load(buffer);
}
#if defined(__AVX512F__)
inline uint32_t first_lanes(int64_t count) { return (uint32_t{1} << count) - 1; }
inline vec<float> load_partial(const float* p, int64_t count) {
  return (vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(count)), p);
}
inline vec<double> load_partial(const double* p, int64_t count) {
  return (vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p);
}
template <class T>
inline vec<float> load_partial(const T* p, int64_t count) {
  T buffer[lanes<float>];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(buffer),
                      _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_lanes(count)), p));
  return load(buffer);
}
inline void store_partial(float* p, vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(count)), (__m512)v);
}
inline void store_partial(double* p, vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), (__m512d)v);
}
template <class T>
inline void store_partial(T* p, vec<float> v, int64_t count) {
  T buffer[lanes<float>];
  store(buffer, v);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(first_lanes(count)),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(buffer)));
}
#else
template <class T>
inline vec<acc_t<T>> load_partial(const T* p, int64_t count) {
  T buffer[lanes<acc_t<T>>] = {};
  std::memcpy(buffer, p, static_cast<size_t>(count) * sizeof(T));
  return load(buffer);
}
template <class T>
inline void store_partial(T* p, vec<acc_t<T>> v, int64_t count) {
  T buffer[lanes<acc_t<T>>];
  store(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(count) * sizeof(T));
}
#endif

// ---- arithmetic ---------------------------------------------------------------------------------------------------

// mask lanes are all ones or all zeros, as vector comparisons give them.
template <class V, class M>
inline V select(M mask, V if_true, V if_false) {
  return mask ? if_true : if_false;
}
// NaN in either operand gives NaN: a maximum that drops NaN would hide it.
template <class V>
inline V max_nan(V a, V b) {
  V larger = a > b ? a : b;
  return a != a ? a : larger;
}
template <class V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}
template <class V>
inline V minimum(V a, V b) {
  return a < b ? a : b;
}

// Correctly rounded; NaN below zero.
inline vec<float> sqrt(vec<float> x) {
#if defined(__AVX512F__)
  return (vec<float>)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vec<float>)_mm256_sqrt_ps((__m256)x);
#else
  for (int lane = 0; lane < lanes<float>; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
#endif
}
inline vec<double> sqrt(vec<double> x) {
#if defined(__AVX512F__)
  return (vec<double>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (vec<double>)_mm256_sqrt_pd((__m256d)x);
#else
  for (int lane = 0; lane < lanes<double>; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
#endif
}

template <class A>
inline A reduce_add(vec<A> v) {
  A sum = 0;
  for (int lane = 0; lane < lanes<A>; ++lane) sum += v[lane];
  return sum;
}
template <class A>
inline A reduce_max(vec<A> v) {
  A largest = v[0];
  for (int lane = 1; lane < lanes<A>; ++lane) largest = v[lane] > largest ? v[lane] : largest;
  return largest;
}
inline float reduce_add(vec<float> v) { return reduce_add<float>(v); }
inline double reduce_add(vec<double> v) { return reduce_add<double>(v); }
inline float reduce_max(vec<float> v) { return reduce_max<float>(v); }
inline double reduce_max(vec<double> v) { return reduce_max<double>(v); }

// Round half to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no fraction bits to keep.
inline vec<float> round_even(vec<float> x) {
  vec<float> magic = broadcast(12582912.0f);
  return (x + magic) - magic;  // the build does not allow reassociation
}

// exp in float to about 1 ulp: 2^n * exp(r) with |r| <= ln2/2. exp(-inf) = 0, overflow gives inf, NaN stays NaN;
// results below the smallest normal number become 0.
inline vec<float> exp(vec<float> x) {
  vec<float> n = round_even(minimum(maximum(x, broadcast(-104.0f)), broadcast(89.0f)) * 1.44269504088896341f);
  vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;  // ln2 in two parts, so that n * ln2 is exact enough
  vec<float> p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // n reaches 128, which has no exponent field of its own: scale in two steps.
  vec_i32 exponent = __builtin_convertvector(n, vec_i32);
  vec_i32 first = exponent >> 1, second = exponent - first;
  vec<float> scaled = p * bit_cast<vec<float>>((first + 127) << 23) * bit_cast<vec<float>>((second + 127) << 23);
  scaled = x > 88.72283905f ? broadcast(std::numeric_limits<float>::infinity()) : scaled;
  scaled = x < -87.33654475f ? vec<float>{} : scaled;
  return x != x ? x : scaled;
}
inline vec<double> exp(vec<double> x) {
  for (int lane = 0; lane < lanes<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

}  // namespace bigkern
