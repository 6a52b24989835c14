// Eight floats at a time, in the compiler's own vectors: one source gives AVX2 where a function is marked for
// it, and whatever the processor has (SSE2, NEON) elsewhere. Everything is inlined into the marked function.
#pragma once

#include <cstring>

#include "../inline.h"

#if defined(__x86_64__)
#define FASTRLHF_HAS_AVX2_VERSION 1
#define FASTRLHF_AVX2 __attribute__((target("avx2,fma")))
#define FASTRLHF_AVX512 __attribute__((target("avx512f,avx2,fma")))
// For arithmetic that must round after every operation: without the instruction nothing can be fused.
#define FASTRLHF_AVX2_WITHOUT_FMA __attribute__((target("avx2")))
#endif

namespace fastrlhf {

constexpr int LANES = 8;

// A kernel of elements takes 0.1 to 0.4 ns a number, and another thread 2 to 5 us to start and to wait for.
constexpr int64_t ELEMENTS_WORTH_THREADS = 1 << 15;
typedef float f8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef double d8 __attribute__((vector_size(64)));
typedef int64_t l4 __attribute__((vector_size(32)));
typedef float f4 __attribute__((vector_size(16)));
typedef double d4 __attribute__((vector_size(32)));
typedef uint8_t b8 __attribute__((vector_size(8)));
typedef uint16_t s8 __attribute__((vector_size(16)));

// True where the AVX2 versions run: this processor has AVX2 and FMA, and no test asked for the portable ones.
bool use_avx2();
void force_portable(bool portable);
// True where the AVX-512 versions run: the processor has it, the AVX2 versions may run too, and no test forbade it.
bool use_avx512();
void allow_avx512(bool allowed);

// The first `count` of eight floats; the lanes after them are zero.
FASTRLHF_INLINE f8 load(const float* from, int count) {
  f8 to{};
  memcpy(&to, from, count == LANES ? sizeof(to) : count * sizeof(float));
  return to;
}

FASTRLHF_INLINE void store(float* to, f8 from, int count) {
  memcpy(to, &from, count == LANES ? sizeof(from) : count * sizeof(float));
}

// Whole vectors of any width.
template <class V>
FASTRLHF_INLINE V load_vector(const float* from) {
  V to;
  memcpy(&to, from, sizeof(to));
  return to;
}

template <class V>
FASTRLHF_INLINE void store_vector(float* to, V from) {
  memcpy(to, &from, sizeof(from));
}

// Booleans as the selecting mask of eight lanes; those after `count` are false. Each lane picks its byte of a
// word: GCC would widen eight bytes one by one, in 25 instructions.
FASTRLHF_INLINE i8 load_mask(const bool* from, int count) {
  uint32_t four[2]{};
  memcpy(four, from, count);
  const int low = (int)four[0], high = (int)four[1], first = 0xff, second = first << 8, third = second << 8,
            fourth = (int)0xff000000;
  const i8 words = {low, low, low, low, high, high, high, high};
  return (words & i8{first, second, third, fourth, first, second, third, fourth}) != 0;
}

// bfloat16 as its 16 bits, the upper ones of a float.
FASTRLHF_INLINE f8 load_bfloat16(const uint16_t* from, int count) {
  s8 bits{};
  memcpy(&bits, from, count == LANES ? sizeof(bits) : count * sizeof(uint16_t));
  return (f8)(__builtin_convertvector(bits, i8) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
FASTRLHF_INLINE void store_bfloat16(uint16_t* to, f8 from, int count) {
  const i8 bits = (i8)from;
  const i8 rounded = bits + 0x7fff + (bits >> 16 & 1);
  const i8 upper = (from == from ? rounded : bits | 0x400000) >> 16;
  const s8 narrow = __builtin_convertvector(upper, s8);
  memcpy(to, &narrow, count == LANES ? sizeof(narrow) : count * sizeof(uint16_t));
}

// Without -fno-math-errno the compiler would not make one instruction of it.
FASTRLHF_INLINE f8 square_root(f8 x) {
  f8 roots;
  for (int lane = 0; lane < LANES; ++lane) roots[lane] = __builtin_sqrtf(x[lane]);
  return roots;
}

// x in the first `count` lanes, zero after them.
FASTRLHF_INLINE f8 first(f8 x, int count) {
  const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return lane < count ? x : f8{};
}

// The sum of eight lanes, always in this order.
FASTRLHF_INLINE float sum_lanes(f8 x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// The sum of term(at, count), eight terms each (zero after the first `count`), over `length` positions. Four
// sums run side by side: one chain of additions would wait for itself.
template <class Term>
FASTRLHF_INLINE float sum_of(int64_t length, Term term) {
  f8 sums[4]{};
  int64_t at = 0;
  for (; at + 4 * LANES <= length; at += 4 * LANES) {
    for (int i = 0; i < 4; ++i) sums[i] += term(at + i * LANES, LANES);
  }
  for (; at + LANES <= length; at += LANES) sums[0] += term(at, LANES);
  if (at < length) sums[1] += term(at, (int)(length - at));
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Calls step(at, count) for every eight of `length` positions.
template <class Step>
FASTRLHF_INLINE void for_eights(int64_t length, Step step) {
  int64_t at = 0;
  for (; at + LANES <= length; at += LANES) step(at, LANES);
  if (at < length) step(at, (int)(length - at));
}

// Sums of eight lanes in float64. Two vectors of AVX2's width: GCC keeps a sum of type d8 in memory, not in registers.
struct LaneSum {
  d4 low{}, high{};

  FASTRLHF_INLINE void add(f8 x) {
    const d8 wide = __builtin_convertvector(x, d8);
    d4 halves[2];
    memcpy(halves, &wide, sizeof wide);
    low += halves[0];
    high += halves[1];
  }
  FASTRLHF_INLINE double total() const {
    const d4 sum = low + high;
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
};

// True if any of eight lanes is.
FASTRLHF_INLINE bool any(i8 mask) {
  const l4 pairs = (l4)mask;
  return ((pairs[0] | pairs[1]) | (pairs[2] | pairs[3])) != 0;
}

FASTRLHF_INLINE i8 to_bits(f8 x) { return (i8)x; }
FASTRLHF_INLINE f8 from_bits(i8 bits) { return (f8)bits; }
FASTRLHF_INLINE f8 to_floats(i8 n) { return __builtin_convertvector(n, f8); }

FASTRLHF_INLINE f8 absolute(f8 x) { return (f8)((i8)x & 0x7fffffff); }

// 2^n for n in [-126, 127].
FASTRLHF_INLINE f8 power_of_two(i8 n) { return (f8)((n + 127) << 23); }

// e^x = 2^n (1 + r + rest), |r| <= ln(2) / 2, rest = e^r - 1 - r.
struct Reduced {
  i8 n;
  f8 r, rest;
};

FASTRLHF_INLINE Reduced reduce(f8 x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits: no conversion, and none of a
  // NaN.
  const f8 magic = f8{} + 12582912.0f;
  const f8 shifted = x * 1.44269504f + magic;
  const f8 rounded = shifted - magic;
  // ln(2) in two parts; the product with the first (9 bits) is exact, with or without a fused multiply-add.
  const f8 r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  // The Taylor series: its first missing term is at most 2e-10, a 300th of half a unit in the last place of
  // one.
  f8 q = r * (1.0f / 40320) + 1.0f / 5040;
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  return {(i8)shifted - (i8)magic, r, r * r * q};
}

FASTRLHF_INLINE f8 clamp_keeping_nan(f8 x, float low, float high) {
  x = x < low ? f8{} + low : x;
  return x > high ? f8{} + high : x;
}

// e^x within 1 ulp, from 0 (below -104) over the subnormals to infinity (above 88.7); NaN stays NaN. The
// power of two is applied in halves because 2^128 and 2^-149 have no float of their own.
FASTRLHF_INLINE f8 exponential(f8 x) {
  const Reduced e = reduce(clamp_keeping_nan(x, -104.0f, 89.0f));
  const i8 half = e.n >> 1;
  return (1.0f + (e.r + e.rest)) * power_of_two(half) * power_of_two(e.n - half);
}

// Near zero `rest` comes from the series, without the cancellation of expm1(x) - x. Below -25 e^x - 1 is -1.
FASTRLHF_INLINE Expm1<f8> expm1_and_rest(f8 x) {
  const Reduced e = reduce(clamp_keeping_nan(x, -25.0f, 89.0f));
  const f8 scale = power_of_two(e.n - 1);
  const f8 expm1 = 2.0f * (scale * (e.r + e.rest) + (scale - 0.5f));
  const i8 unscaled = e.n == 0;
  return {unscaled ? e.r + e.rest : expm1, unscaled ? e.rest : expm1 - x};
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
template <auto BODY, class... Args>
FASTRLHF_AVX2 void run_avx2(Args... args) {
  BODY(args...);
}

template <auto BODY, class... Args>
FASTRLHF_AVX512 void run_avx512(Args... args) {
  BODY(args...);
}
#endif

template <auto BODY, class... Args>
void run_portable(Args... args) {
  BODY(args...);
}

// Calls BODY, an inlined function, in the version for this processor.
template <auto BODY, class... Args>
inline void on_vectors(Args... args) {
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx2()) return run_avx2<BODY>(args...);
#endif
  run_portable<BODY>(args...);
}

// As `on_vectors`, for a Body::run<V> of vectors V of sixteen floats where the processor has them, else of eight.
template <class Body, class... Args>
inline void on_widest_vectors(Args... args) {
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx512()) return run_avx512<&Body::template run<f16>>(args...);
#endif
  on_vectors<&Body::template run<f8>>(args...);
}

}  // namespace fastrlhf
