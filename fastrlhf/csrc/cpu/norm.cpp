// One row after the other, rows over the threads. A row stays in the first-level cache between its passes, so
// that memory sees each number once.
#include "norm.h"

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace fastrlhf {
namespace {

FASTRLHF_INLINE void normalise_rows(const NormArrays* a, int64_t begin, int64_t end, int64_t columns,
                                    float eps, float weight_offset) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = a->hidden_states[row];
    if (a->residual.first) {
      const float* residual = a->residual[row];
      float* summed = a->summed + row * columns;
      for_eights(columns, [&](int64_t at, int count) __attribute__((always_inline)) {
        store(summed + at, load(x + at, count) + load(residual + at, count), count);
      });
      x = summed;
    }
    float mean = 0;
    if (a->bias) {
      mean = sum_of(columns, [&](int64_t at, int count)
                                 __attribute__((always_inline)) { return load(x + at, count); }) /
             (float)columns;
      a->mean[row] = mean;
    }
    const float squares = sum_of(columns, [&](int64_t at, int count) __attribute__((always_inline)) {
      const f8 centred = first(load(x + at, count) - mean, count);
      return centred * centred;
    });
    const float rstd = 1.0f / std::sqrt(squares / (float)columns + eps);
    a->rstd[row] = rstd;
    float* normed = a->normed + row * columns;
    for_eights(columns, [&](int64_t at, int count) __attribute__((always_inline)) {
      const f8 n = (load(x + at, count) - mean) * rstd;
      f8 out = n * (load(a->weight + at, count) + weight_offset);
      if (a->bias) out += load(a->bias + at, count);
      store(normed + at, out, count);
    });
  }
}

}  // namespace

void norm(const NormArrays& arrays, int64_t rows, int64_t columns, float eps, float weight_offset) {
  const int64_t block = std::max<int64_t>(1, 4096 / columns), blocks = (rows + block - 1) / block;
#pragma omp parallel for schedule(static) if (rows * columns > ELEMENTS_WORTH_THREADS)
  for (int64_t i = 0; i < blocks; ++i) {
    on_vectors<normalise_rows>(&arrays, i * block, std::min(rows, (i + 1) * block), columns, eps,
                               weight_offset);
  }
}

}  // namespace fastrlhf
