#pragma once

#include <pybind11/pybind11.h>

#include "norm.h"

namespace fastrlhf {

inline void bind_norm(pybind11::module_& module) {
  module.def("norm", [](uintptr_t hidden_states, int64_t stride, uintptr_t residual, int64_t residual_stride,
                        uintptr_t weight, uintptr_t bias, uintptr_t normed, uintptr_t summed, uintptr_t mean,
                        uintptr_t rstd, int64_t rows, int64_t columns, float eps, float weight_offset) {
    pybind11::gil_scoped_release release;
    const NormArrays arrays = {{(const float*)hidden_states, stride},
                               {(const float*)residual, residual_stride},
                               (const float*)weight,
                               (const float*)bias,
                               (float*)normed,
                               (float*)summed,
                               (float*)mean,
                               (float*)rstd};
    norm(arrays, rows, columns, eps, weight_offset);
  });
  module.def("norm_backward",
             [](uintptr_t grad_normed, int64_t normed_stride, uintptr_t grad_summed,
                int64_t summed_grad_stride, uintptr_t summed, int64_t summed_stride, uintptr_t weight,
                uintptr_t mean, uintptr_t rstd, uintptr_t grad, uintptr_t grad_weight, uintptr_t grad_bias,
                int64_t rows, int64_t columns, float weight_offset) {
               pybind11::gil_scoped_release release;
               const NormBackwardArrays arrays = {{(const float*)grad_normed, normed_stride},
                                                  {(const float*)grad_summed, summed_grad_stride},
                                                  {(const float*)summed, summed_stride},
                                                  (const float*)weight,
                                                  (const float*)mean,
                                                  (const float*)rstd,
                                                  (float*)grad,
                                                  (float*)grad_weight,
                                                  (float*)grad_bias};
               norm_backward(arrays, rows, columns, weight_offset);
             });
}

}  // namespace fastrlhf
