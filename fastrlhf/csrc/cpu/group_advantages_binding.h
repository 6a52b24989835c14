#pragma once

#include <pybind11/pybind11.h>

#include "group_advantages.h"

namespace fastrlhf {

inline void bind_group_advantages(pybind11::module_& module) {
  module.def("group_advantages",
             [](uintptr_t scores, uintptr_t mask, uintptr_t groups, uintptr_t advantages, uintptr_t moments,
                int64_t rows, int64_t group_size, int estimator, double epsilon) {
               pybind11::gil_scoped_release release;
               group_advantages((const float*)scores, (const bool*)mask, (const int64_t*)groups,
                                (float*)advantages, (double*)moments, rows, group_size, estimator, epsilon);
             });
}

}  // namespace fastrlhf
