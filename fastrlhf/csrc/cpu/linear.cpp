// y = x W^T for a batch of 1 to 32 rows. Such a product reads the whole weight for a few multiplications each,
// so what counts is that the weight is read once, at the speed of the memory, and never copied.
#include "linear.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

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

// The most rows of the weight that a call of `run` is given, and the fewest: the 576 rows of a layer in steps of 64
// would give one of two threads a quarter more to do than the other.
constexpr int64_t STEP = 64, SMALL_STEP = 16, MANY_ROWS = 4096;

// Columns [begin, end) of row b of y, of sums that are still without scales and bias.
inline void put(const ThinLinear& p, int64_t b, int64_t begin, int64_t end, float* sums) {
  float* to = p.y + b * p.out + begin;
  const int64_t count = end - begin;
  for (int64_t i = 0; p.codes && i < count; ++i) sums[i] *= p.scales[begin + i];
  for (int64_t i = 0; p.bias && i < count; ++i) sums[i] += p.bias[begin + i];
  if (!p.adds) {
    memcpy(to, sums, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] += p.factor * sums[i];
}

// Columns [begin, end) of x times a weight [in, out]: a row of the weight at a time, times a number of each of BATCH
// rows of x.
template <int BATCH>
FASTRLHF_INLINE void transposed_tile(const ThinLinear& p, int64_t first, int64_t begin, int count,
                                     float* to) {
  constexpr int VECTORS = SMALL_STEP / LANES;
  f8 sums[BATCH][VECTORS] = {};
  for (int64_t k = 0; k < p.in; ++k) {
    const float* weight = p.weight + k * p.out + begin;
    for (int i = 0; i < VECTORS; ++i) {
      const int some = count - i * LANES < LANES ? count - i * LANES : LANES;
      if (some <= 0) break;
      const f8 w = load(weight + i * LANES, some);
      for (int b = 0; b < BATCH; ++b) sums[b][i] += w * p.x[(first + b) * p.in + k];
    }
  }
  for (int b = 0; b < BATCH; ++b) {
    for (int i = 0; i < VECTORS; ++i) store(to + b * SMALL_STEP + i * LANES, sums[b][i], LANES);
  }
}

FASTRLHF_INLINE void transposed_columns(const ThinLinear* product, int64_t begin, int64_t end) {
  const ThinLinear& p = *product;
  for (int64_t at = begin; at < end; at += SMALL_STEP) {
    const int count = (int)(end - at < SMALL_STEP ? end - at : SMALL_STEP);
    for (int64_t first = 0; first < p.batch; first += 4) {
      float y[4 * SMALL_STEP];
      const int rows = (int)(p.batch - first < 4 ? p.batch - first : 4);
      switch (rows) {
        case 1: transposed_tile<1>(p, first, at, count, y); break;
        case 2: transposed_tile<2>(p, first, at, count, y); break;
        case 3: transposed_tile<3>(p, first, at, count, y); break;
        default: transposed_tile<4>(p, first, at, count, y);
      }
      for (int b = 0; b < rows; ++b) put(p, first + b, at, at + count, y + b * SMALL_STEP);
    }
  }
}

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

namespace {

// What one thread takes at least: a nanosecond for 32 bytes of the weight, and one for 128 products. Another thread takes
// 2 to 5 us to start and to wait for.
constexpr int64_t WORTH_THREADS = 5000;
int64_t nanoseconds(const ThinLinear& p) {
  const int64_t numbers = p.out * p.in;
  return numbers * (p.codes ? 1 : 4) / 32 + numbers * p.batch / 128;
}

int64_t step_of(const ThinLinear& p) { return p.out < MANY_ROWS ? SMALL_STEP : STEP; }
int64_t steps_of(const ThinLinear& p) { return (p.out + step_of(p) - 1) / step_of(p); }

// Rows [begin, end) of the weight with all of x.
void run(const ThinLinear& product, int64_t begin, int64_t end) {
  void (*run_thin)(const ThinLinear&, int64_t, int64_t) = portable::run;
#ifdef FASTRLHF_LINEAR_X86
  if (linear_vectors() == 512) run_thin = avx512::run;
  if (linear_vectors() == 256) run_thin = avx2::run;
#endif
  if (product.transposed) return on_vectors<transposed_columns>(&product, begin, end);
  for (int64_t first = 0; first < product.batch; first += MAX_THIN_BATCH) {
    ThinLinear part = product;
    part.x += first * product.in;
    part.y += first * product.out;
    part.batch = std::min(product.batch - first, MAX_THIN_BATCH);
    run_thin(part, begin, end);
  }
}

}  // namespace

void thin_linears(const ThinLinear* products, int64_t count) {
  int64_t steps = 0, time = 0;
  for (int64_t i = 0; i < count; ++i) {
    steps += steps_of(products[i]);
    time += nanoseconds(products[i]);
  }
#pragma omp parallel for schedule(static) if (time > WORTH_THREADS)
  for (int64_t step = 0; step < steps; ++step) {
    const ThinLinear* product = products;
    int64_t at = step;
    for (; at >= steps_of(*product); ++product) at -= steps_of(*product);
    const int64_t begin = at * step_of(*product), end = begin + step_of(*product);
    run(*product, begin, std::min(end, product->out));
  }
}

void thin_linear(const ThinLinear& product) { thin_linears(&product, 1); }

}  // namespace fastrlhf
