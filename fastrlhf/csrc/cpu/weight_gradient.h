// The gradient of a layer's weight.
#pragma once

#include <cstdint>

namespace fastrlhf {

// grad_weight [out, in] = grad [rows, out] transposed times x [rows, in], all contiguous.
struct WeightGradient {
  const float *grad, *x;
  float* grad_weight;
  int64_t rows, out, in;
};

// Bit for bit the same for every number of threads.
void weight_gradient(const WeightGradient& product);

}  // namespace fastrlhf
