// Rotary position embedding of heads.
#pragma once

#include <cstdint>

namespace fastrlhf {

// [tokens, heads, width] with unit stride along the width. `to` may be `from`, with the same strides.
struct Heads {
  const float* from;
  float* to;
  int64_t count, token_stride, head_stride, to_token_stride, to_head_stride;
};

// Rows of `rotated` angles, one a token.
struct Angles {
  const float *cos, *sin;
  int64_t cos_stride, sin_stride, rotated;
};

void rope(const Heads& query, const Heads& key, const Angles& angles, int64_t tokens, int64_t width,
          bool transposed);

}  // namespace fastrlhf
