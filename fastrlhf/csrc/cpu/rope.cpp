// Tokens over the threads; a token's angles serve all its heads from the first-level cache.
#include "rope.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace fastrlhf {
namespace {

template <bool TRANSPOSED>
FASTRLHF_INLINE void rotate_token(const Heads* heads, const Angles* angles, int64_t token, int64_t width) {
  const int64_t half = angles->rotated / 2;
  const float *cos = angles->cos + token * angles->cos_stride,
              *sin = angles->sin + token * angles->sin_stride;
  for (int64_t head = 0; head < heads->count; ++head) {
    const float* from = heads->from + token * heads->token_stride + head * heads->head_stride;
    float* to = heads->to + token * heads->to_token_stride + head * heads->to_head_stride;
    for_eights(half, [&](int64_t at, int count) __attribute__((always_inline)) {
      const f8 a = load(from + at, count), b = load(from + half + at, count);
      const f8 sin_a = load(sin + at, count), sin_b = load(sin + half + at, count);
      const f8 turned_a = TRANSPOSED ? b * sin_b : -(b * sin_a);
      const f8 turned_b = TRANSPOSED ? -(a * sin_a) : a * sin_b;
      store(to + at, a * load(cos + at, count) + turned_a, count);
      store(to + half + at, b * load(cos + half + at, count) + turned_b, count);
    });
    if (to != from) memcpy(to + 2 * half, from + 2 * half, (width - 2 * half) * sizeof(float));
  }
}

template <bool TRANSPOSED>
FASTRLHF_INLINE void rotate_tokens(const Heads* query, const Heads* key, const Angles* angles, int64_t begin,
                                   int64_t end, int64_t width) {
  for (int64_t token = begin; token < end; ++token) {
    rotate_token<TRANSPOSED>(query, angles, token, width);
    rotate_token<TRANSPOSED>(key, angles, token, width);
  }
}

}  // namespace

void rope(const Heads& query, const Heads& key, const Angles& angles, int64_t tokens, int64_t width,
          bool transposed) {
  const int64_t of_token = std::max<int64_t>(1, (query.count + key.count) * width);
  const int64_t block = std::max<int64_t>(1, 4096 / of_token), blocks = (tokens + block - 1) / block;
#pragma omp parallel for schedule(static) if (tokens * of_token > ELEMENTS_WORTH_THREADS)
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = i * block, end = std::min(tokens, begin + block);
    if (transposed) {
      on_vectors<rotate_tokens<true>>(&query, &key, &angles, begin, end, width);
    } else {
      on_vectors<rotate_tokens<false>>(&query, &key, &angles, begin, end, width);
    }
  }
}

}  // namespace fastrlhf
