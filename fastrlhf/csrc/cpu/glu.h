// Gated linear units, forward and backward.
#pragma once

#include <cstdint>

namespace fastrlhf {

enum class Activation { SILU, GELU, GELU_TANH };  // the order of ACTIVATIONS in fastrlhf/kernels/glu.py

// Rows of `columns` floats, `*_stride` floats apart; outputs are contiguous.
struct GLUArrays {
  const float *grad_output, *gate, *up;  // grad_output: null in the forward
  int64_t grad_stride, gate_stride, up_stride;
  float *output, *grad_gate, *grad_up;  // the output, or the two gradients
};

void glu(const GLUArrays& arrays, int64_t rows, int64_t columns, Activation activation);
void glu_backward(const GLUArrays& arrays, int64_t rows, int64_t columns, Activation activation);

}  // namespace fastrlhf
