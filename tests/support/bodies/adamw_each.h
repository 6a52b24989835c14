// Runs the body of `adamw_each`, a table after the other.
#pragma once

#include "cuda/adamw_each.cuh"

template <class G>
static void run_adamw_each(const std::vector<fastrlhf::AdamWTensor>& tensors,
                           const std::vector<int64_t>& sizes, uintptr_t grad_norm,
                           const fastrlhf::AdamWNumbers& numbers, bool reversed) {
  for (size_t start = 0; start < tensors.size(); start += fastrlhf::ADAMW_TENSORS) {
    const auto table = fastrlhf::adamw_table<G>(tensors, sizes, grad_norm, start);
    cuda_on_cpu::launch((unsigned)table.first_block[table.count], fastrlhf::ADAMW_THREADS, reversed,
                        [&] { fastrlhf::adamw_each_kernel<G>(table, numbers); });
  }
}

inline void bind_adamw_each_body(pybind11::module_& module) {
  module.def("adamw_each", [](bool bfloat16, const std::vector<fastrlhf::AdamWTensor>& tensors,
                              const std::vector<int64_t>& sizes, uintptr_t grad_norm,
                              const std::array<double, fastrlhf::ADAMW_NUMBERS>& numbers, bool reversed) {
    (bfloat16 ? run_adamw_each<__nv_bfloat16>
              : run_adamw_each<float>)(tensors, sizes, grad_norm, fastrlhf::adamw_numbers(numbers), reversed);
  });
}
