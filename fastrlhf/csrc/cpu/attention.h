// Causal attention over packed sequences on the CPU, forward and backward.
#pragma once

#include <cstdint>

namespace fastrlhf {

// [tokens, heads, width] floats; the last stride is one.
struct HeadsIn {
  const float* data;
  int64_t token_stride, head_stride;

  const float* row(int64_t token, int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

struct AttentionProblem {
  HeadsIn query, key, value;
  const int32_t* cu_seqlens;
  const int32_t* skip;  // may be null
  int64_t sequences, heads, key_heads, width;
  float scale;
  float softcap;   // zero: none
  int64_t window;  // zero: none
};

// output: [tokens, heads, width], lse: [tokens, heads], contiguous; rows of padding are left as they are.
void attention(const AttentionProblem& problem, float* output, float* lse);

// The gradients are contiguous and zero beforehand; rows of padding are left as they are.
void attention_backward(const AttentionProblem& problem, const HeadsIn& grad_output, const float* output,
                        const float* lse, float* grad_query, float* grad_key, float* grad_value);

}  // namespace fastrlhf
