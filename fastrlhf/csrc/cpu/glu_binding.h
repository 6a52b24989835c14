#pragma once

#include <pybind11/pybind11.h>

#include "glu.h"

namespace fastrlhf {

inline void bind_glu(pybind11::module_& module) {
  module.def("glu", [](uintptr_t gate, int64_t gate_stride, uintptr_t up, int64_t up_stride, uintptr_t output,
                       int64_t rows, int64_t columns, int activation) {
    pybind11::gil_scoped_release release;
    GLUArrays arrays{};
    arrays.gate = (const float*)gate;
    arrays.gate_stride = gate_stride;
    arrays.up = (const float*)up;
    arrays.up_stride = up_stride;
    arrays.output = (float*)output;
    glu(arrays, rows, columns, (Activation)activation);
  });
  module.def("glu_backward", [](uintptr_t grad_output, int64_t grad_stride, uintptr_t gate,
                                int64_t gate_stride, uintptr_t up, int64_t up_stride, uintptr_t grad_gate,
                                uintptr_t grad_up, int64_t rows, int64_t columns, int activation) {
    pybind11::gil_scoped_release release;
    const GLUArrays arrays = {(const float*)grad_output,
                              (const float*)gate,
                              (const float*)up,
                              grad_stride,
                              gate_stride,
                              up_stride,
                              nullptr,
                              (float*)grad_gate,
                              (float*)grad_up};
    glu_backward(arrays, rows, columns, (Activation)activation);
  });
}

}  // namespace fastrlhf
