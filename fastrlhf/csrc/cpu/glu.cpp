// Gated linear units, eight or sixteen numbers at a time. Two streams in and one out (three and two in the backward):
// bound by memory, with the exponential hidden behind it.
#include "glu.h"

#include <algorithm>

#include "activations.h"

namespace fastrlhf {
namespace {

constexpr int64_t BLOCK = 2048;

// Calls step(at, load, store) for every vector of `length` positions; the last one is loaded and stored in part.
template <class V, class Step>
FASTRLHF_INLINE void for_vectors(int64_t length, Step step) {
  constexpr int64_t WIDTH = sizeof(V) / sizeof(float);
  int64_t at = 0;
  for (; at + WIDTH <= length; at += WIDTH)
    step(
        at, [](const float* from) __attribute__((always_inline)) { return load_vector<V>(from); },
        [](float* to, V from) __attribute__((always_inline)) { store_vector(to, from); });
  const size_t rest = (length - at) * sizeof(float);
  if (rest == 0) return;
  step(
      at,
      [rest](const float* from) __attribute__((always_inline)) {
        V to{};
        memcpy(&to, from, rest);
        return to;
      },
      [rest](float* to, V from) __attribute__((always_inline)) { memcpy(to, &from, rest); });
}

// `length` columns of a row, from `begin` on.
template <Activation ACTIVATION>
struct Forward {
  template <class V>
  static FASTRLHF_INLINE void run(const GLUArrays* a, int64_t row, int64_t begin, int64_t length,
                                  int64_t columns) {
    const float *gate = a->gate + row * a->gate_stride + begin, *up = a->up + row * a->up_stride + begin;
    float* output = a->output + row * columns + begin;
    for_vectors<V>(length, [&](int64_t at, auto load, auto store) __attribute__((always_inline)) {
      store(output + at, activate<ACTIVATION>(load(gate + at)).value * load(up + at));
    });
  }
};

template <Activation ACTIVATION>
struct Backward {
  template <class V>
  static FASTRLHF_INLINE void run(const GLUArrays* a, int64_t row, int64_t begin, int64_t length,
                                  int64_t columns) {
    const float *gate = a->gate + row * a->gate_stride + begin, *up = a->up + row * a->up_stride + begin;
    const float* gradient = a->grad_output + row * a->grad_stride + begin;
    float *grad_gate = a->grad_gate + row * columns + begin, *grad_up = a->grad_up + row * columns + begin;
    for_vectors<V>(length, [&](int64_t at, auto load, auto store) __attribute__((always_inline)) {
      const Activated<V> activated = activate<ACTIVATION>(load(gate + at));
      const V g = load(gradient + at);
      store(grad_gate + at, g * load(up + at) * activated.slope);
      store(grad_up + at, g * activated.value);
    });
  }
};

// BLOCK columns of one row each.
template <class Body>
void over_blocks(const GLUArrays& arrays, int64_t rows, int64_t columns) {
  const int64_t in_row = (columns + BLOCK - 1) / BLOCK, blocks = rows * in_row;
#pragma omp parallel for schedule(static) if (rows * columns > ELEMENTS_WORTH_THREADS)
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = i / in_row, begin = i % in_row * BLOCK;
    on_widest_vectors<Body>(&arrays, row, begin, std::min(BLOCK, columns - begin), columns);
  }
}

}  // namespace

void glu(const GLUArrays& arrays, int64_t rows, int64_t columns, Activation activation) {
  switch (activation) {
    case Activation::SILU: return over_blocks<Forward<Activation::SILU>>(arrays, rows, columns);
    case Activation::GELU: return over_blocks<Forward<Activation::GELU>>(arrays, rows, columns);
    case Activation::GELU_TANH: return over_blocks<Forward<Activation::GELU_TANH>>(arrays, rows, columns);
  }
}

void glu_backward(const GLUArrays& arrays, int64_t rows, int64_t columns, Activation activation) {
  switch (activation) {
    case Activation::SILU: return over_blocks<Backward<Activation::SILU>>(arrays, rows, columns);
    case Activation::GELU: return over_blocks<Backward<Activation::GELU>>(arrays, rows, columns);
    case Activation::GELU_TANH: return over_blocks<Backward<Activation::GELU_TANH>>(arrays, rows, columns);
  }
}

}  // namespace fastrlhf
