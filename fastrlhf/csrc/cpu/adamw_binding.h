#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adamw.h"

namespace fastrlhf {

inline void bind_adamw(pybind11::module_& module) {
  module.def("adamw", [](bool bfloat16, const std::array<uintptr_t, ADAMW_ARRAYS>& addresses, int64_t size,
                         const std::array<double, ADAMW_NUMBERS>& numbers) {
    pybind11::gil_scoped_release release;
    if (bfloat16) {
      adamw(adamw_arrays<uint16_t>(addresses), size, adamw_numbers(numbers));
    } else {
      adamw(adamw_arrays<float>(addresses), size, adamw_numbers(numbers));
    }
  });
  // Many tensors of one step in one call, which takes as long as a few of those above where they are small.
  module.def("adamw_each",
             [](bool bfloat16, const std::vector<std::array<uintptr_t, ADAMW_ARRAYS>>& addresses,
                const std::vector<int64_t>& sizes, const std::array<double, ADAMW_NUMBERS>& numbers) {
               if (addresses.size() != sizes.size())
                 throw std::invalid_argument("addresses and sizes differ in number");
               pybind11::gil_scoped_release release;
               for (size_t i = 0; i < sizes.size(); ++i) {
                 if (bfloat16) {
                   adamw(adamw_arrays<uint16_t>(addresses[i]), sizes[i], adamw_numbers(numbers));
                 } else {
                   adamw(adamw_arrays<float>(addresses[i]), sizes[i], adamw_numbers(numbers));
                 }
               }
             });
}

}  // namespace fastrlhf
