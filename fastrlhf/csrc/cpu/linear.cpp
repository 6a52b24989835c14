// y = x W^T for a batch of 1 to 32 rows. Such a product reads the whole weight for a few multiplications each,
// so what counts is that the weight is read once, at the speed of the memory, and never copied.
#include "linear.h"

#include <cstring>

#if defined(__x86_64__)
// GCC 12 warns of its own header (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#define FASTRLHF_LINEAR_X86 1
#endif

// The functions up to FASTRLHF_END_TARGET are compiled for `features`.
#if defined(__clang__)
#define FASTRLHF_PRAGMA(text) _Pragma(#text)
#define FASTRLHF_TARGET(features) \
  FASTRLHF_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FASTRLHF_END_TARGET _Pragma("clang attribute pop")
#else
#define FASTRLHF_PRAGMA(text) _Pragma(#text)
#define FASTRLHF_TARGET(features) _Pragma("GCC push_options") FASTRLHF_PRAGMA(GCC target(features))
#define FASTRLHF_END_TARGET _Pragma("GCC pop_options")
#endif

namespace fastrlhf {
namespace {

int widest = 512;

// The rows of the weight that a call of `run` is given.
constexpr int64_t STEP = 64;

namespace portable {
constexpr int WIDTH = 4, MAX_BATCH = 2;
#define FASTRLHF_LINEAR_MAX_BATCH 2
typedef float vec __attribute__((vector_size(16)));

template <class W>
inline vec load_some(const W* from, int count) {
  vec to{};
  for (int i = 0; i < count; ++i) to[i] = (float)from[i];
  return to;
}
template <class W>
inline vec load(const W* from) {
  return load_some(from, WIDTH);
}
inline void reduce4(const vec (&sums)[4], float* to) {
  for (int i = 0; i < 4; ++i) to[i] = (sums[i][0] + sums[i][2]) + (sums[i][1] + sums[i][3]);
}
#include "linear_tile.h"
#undef FASTRLHF_LINEAR_MAX_BATCH
}  // namespace portable

#ifdef FASTRLHF_LINEAR_X86

FASTRLHF_TARGET("avx2,fma")
namespace avx2 {
// Two rows of x: with three the sixteen registers spill.
constexpr int WIDTH = 8, MAX_BATCH = 2;
#define FASTRLHF_LINEAR_MAX_BATCH 2
typedef __m256 vec;

inline vec load(const float* from) { return _mm256_loadu_ps(from); }
inline vec load(const int8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
template <class W>
inline vec load_some(const W* from, int count) {
  W whole[WIDTH] = {};
  memcpy(whole, from, count * sizeof(W));
  return load(whole);
}
// The sums of the lanes of four vectors. In each half: a0 + a2 and a1 + a3 of a beside those of b, then all four.
inline void reduce4(const vec (&s)[4], float* to) {
  const vec ab = _mm256_unpacklo_ps(s[0], s[1]) + _mm256_unpackhi_ps(s[0], s[1]);
  const vec cd = _mm256_unpacklo_ps(s[2], s[3]) + _mm256_unpackhi_ps(s[2], s[3]);
  const vec abcd = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
  _mm_storeu_ps(to, _mm256_castps256_ps128(abcd) + _mm256_extractf128_ps(abcd, 1));
}
#include "linear_tile.h"
#undef FASTRLHF_LINEAR_MAX_BATCH
}  // namespace avx2
FASTRLHF_END_TARGET

FASTRLHF_TARGET("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
namespace avx512 {
constexpr int WIDTH = 16, MAX_BATCH = 6;
#define FASTRLHF_LINEAR_MAX_BATCH 6
typedef __m512 vec;

inline vec load(const float* from) { return _mm512_loadu_ps(from); }
inline vec load(const int8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
inline vec load_some(const float* from, int count) {
  return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}
inline vec load_some(const int8_t* from, int count) {
  const __m128i codes = _mm_maskz_loadu_epi8((__mmask16)((1u << count) - 1), from);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}
inline void reduce4(const vec (&s)[4], float* to) {
  const vec ab = _mm512_unpacklo_ps(s[0], s[1]) + _mm512_unpackhi_ps(s[0], s[1]);
  const vec cd = _mm512_unpacklo_ps(s[2], s[3]) + _mm512_unpackhi_ps(s[2], s[3]);
  const vec abcd = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  const __m256 halves = _mm512_castps512_ps256(abcd) + _mm512_extractf32x8_ps(abcd, 1);
  _mm_storeu_ps(to, _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1));
}
#include "linear_tile.h"
#undef FASTRLHF_LINEAR_MAX_BATCH
}  // namespace avx512
FASTRLHF_END_TARGET

#endif

}  // namespace

void limit_linear_vectors(int bits) { widest = bits; }

int linear_vectors() {
#ifdef FASTRLHF_LINEAR_X86
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq");
  if (has_avx512 && widest >= 512) return 512;
  if (has_avx2 && widest >= 256) return 256;
#endif
  return 128;
}

void thin_linear(const ThinLinear& product) {
  void (*run)(const ThinLinear&, int64_t, int64_t) = portable::run;
#ifdef FASTRLHF_LINEAR_X86
  if (linear_vectors() == 512) run = avx512::run;
  if (linear_vectors() == 256) run = avx2::run;
#endif
  const int64_t steps = (product.out + STEP - 1) / STEP;
#pragma omp parallel for schedule(static) if (product.out * product.in * product.batch > 1 << 15)
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t begin = step * STEP, end = begin + STEP;
    run(product, begin, end < product.out ? end : product.out);
  }
}

}  // namespace fastrlhf
