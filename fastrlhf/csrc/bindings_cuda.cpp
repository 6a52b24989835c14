// The Python module fastrlhf._cuda: device addresses, sizes and a stream in, a cudaError_t out, which
// fastrlhf/device/launch.py turns into an exception. Imports without a driver.
#include <cuda_bf16.h>

#include "cuda/adamw_binding.h"
#include "cuda/adamw_each_binding.h"
#include "cuda/decode_attention_binding.h"
#include "cuda/group_advantages_binding.h"
#include "cuda/kernels.h"
#include "cuda/quantize_binding.h"
#include "cuda/sample_binding.h"
#include "ppo_loss_binding.h"

PYBIND11_MODULE(_cuda, module) {
  using namespace fastrlhf;
  module.def("gae", [](bool bfloat16, const std::array<uintptr_t, 7>& addresses, uintptr_t scratch,
                       int64_t rows, int64_t columns, float gamma, float gamma_lam, uintptr_t stream) {
    pybind11::gil_scoped_release release;
    return launch_gae(bfloat16, addresses, scratch, rows, columns, gamma, gamma_lam, (cudaStream_t)stream);
  });
  module.def("ppo_loss_scratch_rows", &ppo_loss_scratch_rows);
  module.def("ppo_loss", [](bool bfloat16, const std::array<uintptr_t, PPO_LOSS_ARRAYS>& addresses,
                            uintptr_t scratch, int64_t tokens,
                            const std::array<double, PPO_LOSS_NUMBERS>& numbers, int kl_estimator,
                            uintptr_t stream_address) {
    const PPOLossOptions options = ppo_loss_options(numbers, kl_estimator);
    const cudaStream_t stream = (cudaStream_t)stream_address;
    pybind11::gil_scoped_release release;
    return bfloat16
               ? launch_ppo_loss(ppo_loss_arrays<__nv_bfloat16>(addresses), scratch, tokens, options, stream)
               : launch_ppo_loss(ppo_loss_arrays<float>(addresses), scratch, tokens, options, stream);
  });

  bind_adamw(module);
  bind_adamw_each(module);
  bind_group_advantages(module);
  bind_quantize(module);
  bind_decode_attention(module);
  bind_sample(module);

  // This library's copy of the CUDA runtime keeps a current device of its own.
  module.def("set_device", [](int device) { return (int)cudaSetDevice(device); });
  module.def("error_name", [](int error) { return cudaGetErrorName((cudaError_t)error); });
  module.def("error_text", [](int error) { return cudaGetErrorString((cudaError_t)error); });
  module.def("device_count", [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
  });
  module.attr("runtime_version") = CUDART_VERSION;
}
