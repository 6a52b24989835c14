// The thin matrix products of decoding, straight from row-major weights.
#pragma once

#include <cstdint>

namespace fastrlhf {

constexpr int64_t MAX_THIN_BATCH = 32;

// y [batch, out] = x [batch, in] times the weight [out, in] transposed, plus `bias` [out] if it is not null.
// The weight is float32, or int8 with a scale a row. Everything is contiguous. Beyond MAX_THIN_BATCH rows a part
// of the weight is read from the cache for every so many of them.
struct ThinLinear {
  const float* x;
  const float* weight;  // null for an int8 weight
  const int8_t* codes;  // null for a float32 weight
  const float* scales;  // of `codes`
  const float* bias;
  float* y;
  int64_t batch, out, in;
  bool transposed = false;  // the float32 weight is [in, out], as in GPT-2's Conv1D
  bool adds = false;        // y += factor (x weight^T + bias), as an adapter's second product
  float factor = 1;
};

// The bits of a number of y depend on its row of x and its row of the weight alone, not on the batch around it
// nor on the number of threads.
void thin_linear(const ThinLinear& product);
// Several products side by side, which share the threads; none may read what another one writes.
void thin_linears(const ThinLinear* products, int64_t count);

// The widest vectors that `thin_linear` may use, in bits (512 unless a test says otherwise).
void limit_linear_vectors(int bits);
// Those that it uses: 512, 256, or 128 (the portable version).
int linear_vectors();

}  // namespace fastrlhf
