// Rows over the threads; within a row plain loops, which the compiler turns into vectors.
#include "quantize.h"

#include <array>
#include <cmath>

namespace fastrlhf {
namespace {

constexpr int64_t WORTH_THREADS = 1 << 14;
constexpr int NF4_ZERO = 7;

float largest(const float* x, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::fmax(most, std::fabs(x[i]));
  return most;
}

// The number of thresholds below x: a value on one has the lower code.
int nf4_code(float x, const float* thresholds) {
  int code = 0;
  for (int i = 0; i < 15; ++i) code += x > thresholds[i];
  return code;
}

void nf4_block(const float* weight, int64_t count, float maximum, uint8_t* codes, const float* thresholds) {
  uint8_t of_each[NF4_BLOCK];
  for (int64_t i = 0; i < NF4_BLOCK; ++i) of_each[i] = NF4_ZERO;
  if (maximum > 0) {
    for (int64_t i = 0; i < count; ++i) of_each[i] = (uint8_t)nf4_code(weight[i] / maximum, thresholds);
  }
  for (int64_t i = 0; i < NF4_BLOCK / 2; ++i)
    codes[i] = (uint8_t)(of_each[2 * i] << 4 | of_each[2 * i + 1]);
}

}  // namespace

void quantize_int8(const float* weight, int8_t* codes, float* scales, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = weight + row * columns;
    int8_t* to = codes + row * columns;
    const float scale = largest(from, columns) / 127;
    scales[row] = scale;
    for (int64_t i = 0; i < columns; ++i) {
      // A scale below the smallest normal number is rounded itself: the code may come out above 127.
      const float code = scale == 0 ? 0.0f : std::nearbyint(from[i] / scale);
      to[i] = (int8_t)std::fmin(std::fmax(code, -127.0f), 127.0f);
    }
  }
}

void quantize_nf4(const float* weight, uint8_t* codes, float* maxima, int64_t rows, int64_t columns,
                  const float* thresholds) {
  const int64_t blocks = (columns + NF4_BLOCK - 1) / NF4_BLOCK;
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = block * NF4_BLOCK, left = columns - at, count = left < NF4_BLOCK ? left : NF4_BLOCK;
      const float* from = weight + row * columns + at;
      const int64_t index = row * blocks + block;
      maxima[index] = largest(from, count);
      nf4_block(from, count, maxima[index], codes + index * NF4_BLOCK / 2, thresholds);
    }
  }
}

void dequantize_int8(const int8_t* codes, const float* scales, float* weight, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
  for (int64_t row = 0; row < rows; ++row) {
    const float scale = scales[row];
    for (int64_t i = row * columns; i < (row + 1) * columns; ++i) weight[i] = (float)codes[i] * scale;
  }
}

void dequantize_nf4(const NF4Weight& weight, float* to, int64_t first, int64_t rows, int64_t columns) {
  // Both values of every byte: one look-up for two weights.
  struct Pair {
    float high, low;
  };
  std::array<Pair, 256> pairs;
  for (int byte = 0; byte < 256; ++byte) pairs[byte] = {weight.nf4[byte >> 4], weight.nf4[byte & 15]};

  const int64_t blocks = (columns + NF4_BLOCK - 1) / NF4_BLOCK;
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t index = (first + row) * blocks + block;
      const float of_scales = weight.scale_scales[index / SCALE_BLOCK];
      const float maximum = weight.dynamic[weight.scales[index]] * of_scales + *weight.offset;
      const uint8_t* codes = weight.codes + index * NF4_BLOCK / 2;
      const int64_t at = block * NF4_BLOCK, left = columns - at, count = left < NF4_BLOCK ? left : NF4_BLOCK;
      float* out = to + row * columns + at;
      for (int64_t i = 0; i < count / 2; ++i) {
        const Pair pair = pairs[codes[i]];
        out[2 * i] = pair.high * maximum;
        out[2 * i + 1] = pair.low * maximum;
      }
      if (count % 2) out[count - 1] = pairs[codes[count / 2]].high * maximum;
    }
  }
}

}  // namespace fastrlhf
