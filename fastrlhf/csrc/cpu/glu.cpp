// Gated linear units, eight numbers at a time. Two streams in and one out (three and two in the backward):
// bound by memory, with the exponential hidden behind it.
#include "glu.h"

#include <algorithm>

#include "simd.h"

namespace fastrlhf {
namespace {

constexpr int64_t BLOCK = 2048;

struct Activated {
  f8 value, slope;
};

template <Activation ACTIVATION>
FASTRLHF_INLINE Activated activate(f8 x) {
  if constexpr (ACTIVATION == Activation::SILU) {
    const Sigmoid s = sigmoid_at(x);
    return {x * s.value, s.value + x * s.slope};
  } else if constexpr (ACTIVATION == Activation::GELU) {
    const Normal normal = normal_at(x);
    return {x * normal.distribution, normal.distribution + x * normal.density};
  } else {
    // (1 + tanh(u)) / 2 is the sigmoid of 2u = 2 sqrt(2 / pi) (x + 0.044715 x³).
    const f8 square = x * x;
    const Sigmoid s = sigmoid_at(x * (1.59576912f + 0.0713548163f * square));
    // Where the slope is zero its factor may have overflowed.
    const f8 rest = s.slope == 0.0f ? f8{} : x * s.slope * (1.59576912f + 0.214064449f * square);
    return {x * s.value, s.value + rest};
  }
}

template <Activation ACTIVATION>
FASTRLHF_INLINE void forward_block(const GLUArrays* a, int64_t row, int64_t begin, int64_t length,
                                   int64_t columns) {
  const float *gate = a->gate + row * a->gate_stride + begin, *up = a->up + row * a->up_stride + begin;
  float* output = a->output + row * columns + begin;
  for_eights(length, [&](int64_t at, int count) __attribute__((always_inline)) {
    store(output + at, activate<ACTIVATION>(load(gate + at, count)).value * load(up + at, count), count);
  });
}

template <Activation ACTIVATION>
FASTRLHF_INLINE void backward_block(const GLUArrays* a, int64_t row, int64_t begin, int64_t length,
                                    int64_t columns) {
  const float *gate = a->gate + row * a->gate_stride + begin, *up = a->up + row * a->up_stride + begin;
  const float* gradient = a->grad_output + row * a->grad_stride + begin;
  float *grad_gate = a->grad_gate + row * columns + begin, *grad_up = a->grad_up + row * columns + begin;
  for_eights(length, [&](int64_t at, int count) __attribute__((always_inline)) {
    const Activated activated = activate<ACTIVATION>(load(gate + at, count));
    const f8 g = load(gradient + at, count);
    store(grad_gate + at, g * load(up + at, count) * activated.slope, count);
    store(grad_up + at, g * activated.value, count);
  });
}

// BLOCK columns of one row each.
template <auto BODY>
void over_blocks(const GLUArrays& arrays, int64_t rows, int64_t columns) {
  const int64_t in_row = (columns + BLOCK - 1) / BLOCK, blocks = rows * in_row;
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = i / in_row, begin = i % in_row * BLOCK;
    on_vectors<BODY>(&arrays, row, begin, std::min(BLOCK, columns - begin), columns);
  }
}

}  // namespace

void glu(const GLUArrays& arrays, int64_t rows, int64_t columns, Activation activation) {
  switch (activation) {
    case Activation::SILU:
      return over_blocks<forward_block<Activation::SILU>>(arrays, rows, columns);
    case Activation::GELU:
      return over_blocks<forward_block<Activation::GELU>>(arrays, rows, columns);
    case Activation::GELU_TANH:
      return over_blocks<forward_block<Activation::GELU_TANH>>(arrays, rows, columns);
  }
}

void glu_backward(const GLUArrays& arrays, int64_t rows, int64_t columns, Activation activation) {
  switch (activation) {
    case Activation::SILU:
      return over_blocks<backward_block<Activation::SILU>>(arrays, rows, columns);
    case Activation::GELU:
      return over_blocks<backward_block<Activation::GELU>>(arrays, rows, columns);
    case Activation::GELU_TANH:
      return over_blocks<backward_block<Activation::GELU_TANH>>(arrays, rows, columns);
  }
}

}  // namespace fastrlhf
