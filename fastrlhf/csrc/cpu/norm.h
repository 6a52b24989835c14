// RMS norm and layer norm of rows, forward and backward.
#pragma once

#include <cstdint>

namespace fastrlhf {

// `columns` floats a row, rows `stride` floats apart.
struct Rows {
  const float* first;
  int64_t stride;

  const float* operator[](int64_t row) const { return first + row * stride; }
};

// Outputs are contiguous. Without a bias it is an RMS norm, and `mean` is unused.
struct NormArrays {
  Rows hidden_states, residual;  // residual.first may be null; then `summed` is unused
  const float *weight, *bias;
  float *normed, *summed, *mean, *rstd;
};

void norm(const NormArrays& arrays, int64_t rows, int64_t columns, float eps, float weight_offset);

// Without a mean it is an RMS norm.
struct NormBackwardArrays {
  Rows grad_normed, grad_summed, summed;  // grad_summed.first may be null
  const float *weight, *mean, *rstd;
  float *grad, *grad_weight, *grad_bias;  // grad_weight may be null, and grad_bias too
};

void norm_backward(const NormBackwardArrays& arrays, int64_t rows, int64_t columns, float weight_offset);

}  // namespace fastrlhf
