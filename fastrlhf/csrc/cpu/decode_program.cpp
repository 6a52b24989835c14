// The parts of a decoding step that are not kernels of their own: copies of a few rows, too small for threads.
#include "decode_program.h"

#include <cstring>

namespace fastrlhf {

void begin_step(const BeginStep& s, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t position = s.lengths[row]++;
    const int64_t block = s.block_table[row * s.max_blocks + position / s.block_size];
    s.slots[row] = block * s.block_size + position % s.block_size;
    if (s.cos_table) {
      const size_t bytes = s.rotated * sizeof(float);
      memcpy(s.cos + row * s.rotated, s.cos_table + position * s.rotated, bytes);
      memcpy(s.sin + row * s.rotated, s.sin_table + position * s.rotated, bytes);
    }
    const float* embedding = s.embedding + s.tokens[row] * s.width;
    float* to = s.hidden_states + row * s.width;
    for (int64_t i = 0; i < s.width; ++i) to[i] = s.embedding_scale * embedding[i];
    if (s.position_embedding) {
      const float* of_position = s.position_embedding + position * s.width;
      for (int64_t i = 0; i < s.width; ++i) to[i] += of_position[i];
    }
  }
}

void copy_heads(const CopyHeads& c, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < c.heads; ++head) {
      memcpy(c.to + (row * c.heads + head) * c.width, c.from + row * c.row_stride + head * c.head_stride,
             c.width * sizeof(float));
    }
  }
}

void write_cache(const WriteCache& w, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    const size_t bytes = w.width * sizeof(float);
    memcpy(w.key_cache + w.slots[row] * w.width, w.key + row * w.width, bytes);
    memcpy(w.value_cache + w.slots[row] * w.width, w.value + row * w.width, bytes);
  }
}

void end_step(const EndStep& s, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    ++s.steps[row];
    if (s.seen) s.seen[row * s.seen_stride + s.tokens[row]] = true;
  }
}

}  // namespace fastrlhf
