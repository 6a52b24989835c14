// The binding of `matmul`.
#pragma once

#include <array>

#include "matmul.h"

namespace fastrlhf {

// The addresses of a, b, down, up, bias, c and hidden; the strides of the first four; whether those are transposed;
// rows, columns, depth and rank.
typedef std::array<uintptr_t, 7> MatmulAddresses;
typedef std::array<int64_t, 4> MatmulNumbers;
typedef std::array<bool, 4> MatmulOrders;

inline MatmulJob matmul_job(const MatmulAddresses& at, const MatmulNumbers& strides,
                            const MatmulOrders& transposed, const MatmulNumbers& sizes, float scaling) {
  auto matrix = [&](int i) { return Matrix{(const float*)at[i], strides[i], transposed[i]}; };
  return {matrix(0),     matrix(1),     matrix(2), matrix(3), (const float*)at[4],
          (float*)at[5], (float*)at[6], sizes[0],  sizes[1],  sizes[2],
          sizes[3],      scaling};
}

inline void bind_matmul(pybind11::module_& module) {
  module.def("matmul_scratch", [](const MatmulNumbers& sizes, int threads) {
    return matmul_scratch(matmul_job({}, {}, {}, sizes, 0), threads);
  });
  module.def("matmul", [](const MatmulAddresses& addresses, const MatmulNumbers& strides,
                          const MatmulOrders& transposed, const MatmulNumbers& sizes, float scaling,
                          uintptr_t scratch, int threads) {
    pybind11::gil_scoped_release release;
    matmul(matmul_job(addresses, strides, transposed, sizes, scaling), (float*)scratch, threads);
  });
}

}  // namespace fastrlhf
