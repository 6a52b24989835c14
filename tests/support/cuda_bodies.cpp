// The kernel bodies of csrc/cuda/, launched on the CPU with the geometry that their .cu files use.
#include "cuda_on_cpu.h"

#include "cuda/gae.cuh"
#include "cuda/ppo_loss.cuh"
#include "ppo_loss_binding.h"

#include "bodies/adamw.h"
#include "bodies/adamw_each.h"
#include "bodies/decode_attention.h"
#include "bodies/faulty.h"
#include "bodies/group_advantages.h"
#include "bodies/quantize.h"
#include "bodies/sample.h"

using namespace fastrlhf;

template <class T>
static void run_gae(const std::array<uintptr_t, 7>& a, int64_t rows, int64_t columns, float gamma,
                    float gamma_lam, bool reversed) {
  std::vector<double> scratch(rows * MOMENTS, NAN);
  cuda_on_cpu::launch(gae_blocks(rows), GAE_THREADS, reversed, [&] {
    gae_kernel<T>((const T*)a[0], (const T*)a[1], (const bool*)a[2], (const bool*)a[3], (T*)a[4], (T*)a[5],
                  scratch.data(), rows, columns, gamma, gamma_lam);
  });
  cuda_on_cpu::launch(1, MOMENTS_THREADS, reversed,
                      [&] { moments_finish<MOMENTS_THREADS>(scratch.data(), (double*)a[6], rows); });
}

template <class T>
static void run_ppo_loss(const std::array<uintptr_t, PPO_LOSS_ARRAYS>& addresses, int64_t tokens,
                         const PPOLossOptions& options, bool reversed) {
  const PPOLossArrays<T> arrays = ppo_loss_arrays<T>(addresses);
  const int64_t blocks = ppo_loss_blocks(tokens);
  std::vector<double> scratch(blocks * SUMS, NAN);
  cuda_on_cpu::launch((unsigned)blocks, PPO_LOSS_THREADS, reversed,
                      [&] { ppo_loss_kernel<T>(arrays, scratch.data(), tokens, options); });
  cuda_on_cpu::launch(1, PPO_LOSS_THREADS, reversed, [&] {
    ppo_loss_finish(scratch.data(), blocks, arrays.denominators, arrays.loss, arrays.stats, options);
  });
}

__global__ void warp_functions(int* out) {
  const int lane = threadIdx.x % 32;
  int* mine = out + 6 * threadIdx.x;
  mine[0] = __shfl_down_sync(~0u, lane, 3);
  mine[1] = __shfl_up_sync(~0u, lane, 3);
  mine[2] = __shfl_xor_sync(~0u, lane, 5);
  mine[3] = __shfl_sync(~0u, lane, 9, 8);
  mine[4] = (int)__ballot_sync(~0u, lane % 3 == 0);
  mine[5] = lane < 16 ? __shfl_sync(0xffffu, lane, 2) : __shfl_sync(0xffff0000u, lane, 20);
}

PYBIND11_MODULE(cuda_bodies, module) {
  module.def("gae", [](bool bfloat16, const std::array<uintptr_t, 7>& addresses, int64_t rows,
                       int64_t columns, float gamma, float gamma_lam, bool reversed) {
    (bfloat16 ? run_gae<__nv_bfloat16> : run_gae<float>)(addresses, rows, columns, gamma, gamma_lam,
                                                         reversed);
  });
  module.def("ppo_loss", [](bool bfloat16, const std::array<uintptr_t, PPO_LOSS_ARRAYS>& addresses,
                            int64_t tokens, const std::array<double, PPO_LOSS_NUMBERS>& numbers,
                            int kl_estimator, bool reversed) {
    (bfloat16 ? run_ppo_loss<__nv_bfloat16>
              : run_ppo_loss<float>)(addresses, tokens, ppo_loss_options(numbers, kl_estimator), reversed);
  });
  bind_adamw_body(module);
  bind_adamw_each_body(module);
  bind_group_advantages_body(module);
  bind_quantize_body(module);
  bind_decode_attention_body(module);
  bind_sample_body(module);
  module.def("faulty", [](const std::string& kernel, uintptr_t out, bool reversed) {
    run_faulty(kernel, (int*)out, reversed);
  });
  module.def("warp_functions", [](uintptr_t out, bool reversed) {
    cuda_on_cpu::launch(1, 64, reversed, [&] { warp_functions((int*)out); });
  });
}
