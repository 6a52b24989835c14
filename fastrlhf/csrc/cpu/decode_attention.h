// Attention of one new token a row over a paged cache, on the CPU.
#pragma once

#include <cstdint>

namespace fastrlhf {

// [blocks, block size, key-value heads, width] floats; the last stride is one.
struct Cache {
  const float* data;
  int64_t block_stride, slot_stride, head_stride;
};

struct DecodeProblem {
  const float* query;  // [rows, heads, width], contiguous
  Cache key, value;
  const int32_t* block_table;  // [rows, max_blocks], contiguous
  const int32_t* lengths;
  int64_t rows, heads, key_heads, width, blocks, block_size, max_blocks;
  float scale;
  float softcap;   // zero: none
  int64_t window;  // zero: none
};

// output: [rows, heads, width], contiguous. A length or a block out of range makes the row NaN, and is not read.
void decode_attention(const DecodeProblem& problem, float* output);

}  // namespace fastrlhf
