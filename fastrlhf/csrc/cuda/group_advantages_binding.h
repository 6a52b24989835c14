#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "group_advantages.h"

namespace fastrlhf {

inline void bind_group_advantages(pybind11::module_& module) {
  module.def("group_advantages",
             [](bool bfloat16, const std::array<uintptr_t, 6>& addresses, uintptr_t scratch, int64_t groups,
                int64_t group_size, int estimator, double epsilon, uintptr_t stream) {
               pybind11::gil_scoped_release release;
               return launch_group_advantages(bfloat16, addresses, scratch, groups, group_size, estimator,
                                              epsilon, (cudaStream_t)stream);
             });
}

}  // namespace fastrlhf
