#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adamw_each.h"

namespace fastrlhf {

inline void bind_adamw_each(pybind11::module_& module) {
  module.def("adamw_each",
             [](bool bfloat16, const std::vector<AdamWTensor>& tensors, const std::vector<int64_t>& sizes,
                uintptr_t grad_norm, const std::array<double, ADAMW_NUMBERS>& numbers, uintptr_t stream) {
               pybind11::gil_scoped_release release;
               return launch_adamw_each(bfloat16, tensors, sizes, grad_norm, adamw_numbers(numbers), stream);
             });
}

}  // namespace fastrlhf
