// Gradients of the norms. The weight's is a sum over rows: each of at most PARTS parts of the rows adds up its
// own, SUMMED rows at a time, and then the parts are added up in order. Parts depend on the number of rows
// alone, so the sums have the same bits for every number of threads.
#include <algorithm>
#include <vector>

#include "norm.h"
#include "simd.h"

namespace fastrlhf {
namespace {

constexpr int64_t PARTS = 64, SUMMED = 32;

// `sums` holds four rows of `columns`: the sums of SUMMED rows for weight and bias, and those of the part.
FASTRLHF_INLINE void add_up(float* sums, int64_t columns) {
  for_eights(2 * columns, [&](int64_t at, int count) __attribute__((always_inline)) {
    float* part = sums + 2 * columns + at;
    store(part, load(part, count) + load(sums + at, count), count);
    store(sums + at, f8{}, count);
  });
}

// `sums` is null where the weight is frozen.
FASTRLHF_INLINE void backward_rows(const NormBackwardArrays* a, int64_t begin, int64_t end, int64_t columns,
                                   float weight_offset, float* sums) {
  for (int64_t row = begin; row < end; ++row) {
    const float *gradient = a->grad_normed[row], *x = a->summed[row];
    const float* from_sum = a->grad_summed.first ? a->grad_summed[row] : nullptr;
    const float rstd = a->rstd[row], mean = a->mean ? a->mean[row] : 0.0f;
    // The lanes after `count` of h are zero, and so are those of its products.
    const auto h = [&](int64_t at, int count) __attribute__((always_inline)) {
      return load(gradient + at, count) * (load(a->weight + at, count) + weight_offset);
    };
    const auto normed = [&](int64_t at, int count)
                            __attribute__((always_inline)) { return (load(x + at, count) - mean) * rstd; };
    const float along =
        sum_of(columns, [&](int64_t at, int count)
                            __attribute__((always_inline)) { return h(at, count) * normed(at, count); }) /
        (float)columns;
    const float shift = a->mean ? sum_of(columns, h) / (float)columns : 0.0f;

    float* grad = a->grad + row * columns;
    for_eights(columns, [&](int64_t at, int count) __attribute__((always_inline)) {
      const f8 n = normed(at, count);
      f8 out = rstd * ((h(at, count) - n * along) - shift);
      if (from_sum) out += load(from_sum + at, count);
      store(grad + at, out, count);
      if (sums) {
        const f8 g = load(gradient + at, count);
        float *of_weight = sums + at, *of_bias = sums + columns + at;
        store(of_weight, load(of_weight, count) + g * n, count);
        if (a->mean) store(of_bias, load(of_bias, count) + g, count);
      }
    });
    if (sums && ((row - begin) % SUMMED == SUMMED - 1 || row == end - 1)) add_up(sums, columns);
  }
}

FASTRLHF_INLINE void sum_parts(const float* parts, int64_t count_of_parts, int64_t stride, float* to,
                               int64_t columns) {
  for_eights(columns, [&](int64_t at, int count) __attribute__((always_inline)) {
    f8 total{};
    for (int64_t part = 0; part < count_of_parts; ++part) total += load(parts + part * stride + at, count);
    store(to + at, total, count);
  });
}

}  // namespace

void norm_backward(const NormBackwardArrays& arrays, int64_t rows, int64_t columns, float weight_offset) {
  const int64_t in_part = std::max((rows + PARTS - 1) / PARTS, std::max<int64_t>(1, 4096 / columns));
  const int64_t parts = (rows + in_part - 1) / in_part, stride = 4 * columns;
  std::vector<float> sums(arrays.grad_weight ? parts * stride : 0);
#pragma omp parallel for schedule(static) if (rows * columns > ELEMENTS_WORTH_THREADS)
  for (int64_t part = 0; part < parts; ++part) {
    on_vectors<backward_rows>(&arrays, part * in_part, std::min(rows, (part + 1) * in_part), columns,
                              weight_offset, arrays.grad_weight ? sums.data() + part * stride : nullptr);
  }
  const float* of_parts = sums.data() + 2 * columns;
  if (arrays.grad_weight) on_vectors<sum_parts>(of_parts, parts, stride, arrays.grad_weight, columns);
  if (arrays.grad_bias) on_vectors<sum_parts>(of_parts + columns, parts, stride, arrays.grad_bias, columns);
}

}  // namespace fastrlhf
