// Weights in 8 and 4 bits, and back. Layouts as fastrlhf/kernels/quantize.py describes them.
#pragma once

#include <cstdint>

namespace fastrlhf {

constexpr int64_t NF4_BLOCK = 64, SCALE_BLOCK = 256;

void quantize_int8(const float* weight, int8_t* codes, float* scales, int64_t rows, int64_t columns);

// thresholds: the 15 of the code book. maxima: [rows, ceil(columns / 64)].
void quantize_nf4(const float* weight, uint8_t* codes, float* maxima, int64_t rows, int64_t columns,
                  const float* thresholds);

void dequantize_int8(const int8_t* codes, const float* scales, float* weight, int64_t rows, int64_t columns);

struct NF4Weight {
  const uint8_t *codes, *scales;
  const float *scale_scales, *offset;
  const float *nf4, *dynamic;  // the code books
};

// Rows [first, first + rows) of the weight into `to` [rows, columns].
void dequantize_nf4(const NF4Weight& weight, float* to, int64_t first, int64_t rows, int64_t columns);

}  // namespace fastrlhf
