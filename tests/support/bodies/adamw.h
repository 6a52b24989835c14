// Runs the body of `adamw`.
#pragma once

#include "cuda/adamw.cuh"

template <class G>
static void run_adamw(const std::array<uintptr_t, fastrlhf::ADAMW_ARRAYS>& addresses, int64_t size,
                      const fastrlhf::AdamWNumbers& numbers, bool reversed) {
  const auto arrays = fastrlhf::adamw_arrays<G>(addresses);
  cuda_on_cpu::launch((unsigned)fastrlhf::adamw_blocks(size), fastrlhf::ADAMW_THREADS, reversed, [&] {
    fastrlhf::adamw_kernel<G>(arrays, size, numbers, fastrlhf::adamw_aligned(arrays));
  });
}

inline void bind_adamw_body(pybind11::module_& module) {
  module.def(
      "adamw", [](bool bfloat16, const std::array<uintptr_t, fastrlhf::ADAMW_ARRAYS>& addresses, int64_t size,
                  const std::array<double, fastrlhf::ADAMW_NUMBERS>& numbers, bool reversed) {
        (bfloat16 ? run_adamw<__nv_bfloat16> : run_adamw<float>)(addresses, size,
                                                                 fastrlhf::adamw_numbers(numbers), reversed);
      });
}
