// One decoding step of a whole model as a list of calls, made once and run for every token: between two kernels there
// is a call, and no Python, no allocation and no look at a tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace fastrlhf {

class DecodeProgram {
 public:
  // What is done for the first `rows` rows of the buffers that it knows.
  using Instruction = std::function<void(int64_t rows)>;

  void add(Instruction instruction) { instructions.push_back(std::move(instruction)); }
  void run(int64_t rows) const {
    for (const Instruction& instruction : instructions) instruction(rows);
  }

 private:
  std::vector<Instruction> instructions;
};

// Where each row's token goes in the cache, its angles, and its embedding; its length grows by one.
struct BeginStep {
  const int64_t* tokens;       // [rows]
  int32_t* lengths;            // [rows]: the token's position, and after it the positions that the row has
  const int32_t* block_table;  // [rows, max_blocks]
  int64_t* slots;              // [rows]
  const float *embedding, *position_embedding;  // [vocabulary, width]; the second may be null
  float* hidden_states;                         // [rows, width]
  const float *cos_table, *sin_table;           // [positions, rotated]; null without rotary embedding
  float *cos, *sin;                             // [rows, rotated]
  int64_t max_blocks, block_size, width, rotated;
  float embedding_scale;
};

void begin_step(const BeginStep& step, int64_t rows);

// Heads [rows, heads, width] of a fused projection, side by side.
struct CopyHeads {
  const float* from;
  float* to;
  int64_t heads, width, row_stride, head_stride;
};

void copy_heads(const CopyHeads& copy, int64_t rows);

// Keys and values [rows, width] to their slots in one layer's cache.
struct WriteCache {
  const float *key, *value;
  float *key_cache, *value_cache;
  const int64_t* slots;
  int64_t width;
};

void write_cache(const WriteCache& write, int64_t rows);

// After sampling: each row has one step more behind it, and has seen one token more.
struct EndStep {
  const int64_t* tokens;  // [rows]
  int64_t* steps;         // [rows]
  bool* seen;             // [rows, vocabulary], or null
  int64_t seen_stride;
};

void end_step(const EndStep& step, int64_t rows);

}  // namespace fastrlhf
