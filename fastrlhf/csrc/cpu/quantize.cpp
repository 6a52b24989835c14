// Rows over the threads, eight numbers at a time.
#include "quantize.h"

#include <array>
#include <cmath>

#include "simd.h"

namespace fastrlhf {
namespace {

constexpr int64_t WORTH_THREADS = 1 << 14;
constexpr int NF4_ZERO = 7;

// The largest absolute value; NaN if there is one, whose bits are above all others.
FASTRLHF_INLINE float largest(const float* x, int64_t count) {
  i8 most{};
  for_eights(count, [&](int64_t at, int some) __attribute__((always_inline)) {
    const i8 bits = to_bits(absolute(load(x + at, some)));
    most = bits > most ? bits : most;
  });
  int32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits = most[lane] > bits ? most[lane] : bits;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

struct Int8Rows {
  const float* weight;
  int8_t* codes;
  float* scales;
  int64_t columns;
};

FASTRLHF_INLINE void int8_row(const Int8Rows* rows, int64_t row) {
  typedef int8_t c8 __attribute__((vector_size(8)));
  const float* from = rows->weight + row * rows->columns;
  int8_t* to = rows->codes + row * rows->columns;
  const float scale = rows->scales[row] = largest(from, rows->columns) / 127;
  for_eights(rows->columns, [&](int64_t at, int count) __attribute__((always_inline)) {
    const f8 exact = scale == 0 ? f8{} : load(from + at, count) / scale;
    // A scale below the smallest normal number is rounded itself: the code may come out above 127.
    const f8 magic = f8{} + 12582912.0f;  // rounds to nearest, ties to even, see `reduce`
    const i8 code = to_bits(clamp_keeping_nan(exact, -127.0f, 127.0f) + magic) - to_bits(magic);
    const c8 narrow = __builtin_convertvector(code, c8);
    memcpy(to + at, &narrow, count);
  });
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
  for (int64_t i = 0; i < NF4_BLOCK / 2; ++i) codes[i] = (uint8_t)(of_each[2 * i] << 4 | of_each[2 * i + 1]);
}

}  // namespace

void quantize_int8(const float* weight, int8_t* codes, float* scales, int64_t rows, int64_t columns) {
  const Int8Rows all = {weight, codes, scales, columns};
#pragma omp parallel for schedule(static) if (rows * columns > WORTH_THREADS)
  for (int64_t row = 0; row < rows; ++row) on_vectors<int8_row>(&all, row);
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
