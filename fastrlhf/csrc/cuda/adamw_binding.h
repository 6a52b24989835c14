#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adamw.h"

namespace fastrlhf {

inline void bind_adamw(pybind11::module_& module) {
  module.def("adamw", [](bool bfloat16, const std::array<uintptr_t, ADAMW_ARRAYS>& addresses, int64_t size,
                         const std::array<double, ADAMW_NUMBERS>& numbers, uintptr_t stream) {
    pybind11::gil_scoped_release release;
    return launch_adamw(bfloat16, addresses, size, adamw_numbers(numbers), stream);
  });
}

}  // namespace fastrlhf
