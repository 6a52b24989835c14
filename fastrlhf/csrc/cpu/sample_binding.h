// The CPU module's `sample`.
#pragma once

#include <pybind11/pybind11.h>

#include "../sample_binding.h"
#include "sample.h"

namespace fastrlhf {

inline void bind_sample(pybind11::module_& module) {
  module.def("sample", [](const std::array<uintptr_t, 7>& addresses, const std::array<int64_t, 5>& sizes,
                          const std::array<int64_t, 3>& whole, const std::array<double, 4>& real,
                          const std::array<uintptr_t, 7>& of_rows, const std::array<int64_t, 7>& strides) {
    const auto arguments = sample_arguments<float>({addresses, sizes, whole, real, of_rows, strides});
    pybind11::gil_scoped_release release;
    sample(arguments);
  });
}

}  // namespace fastrlhf
