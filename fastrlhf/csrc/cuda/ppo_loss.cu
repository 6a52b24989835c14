#include "ppo_loss.cuh"

#include "kernels.h"

namespace fastrlhf {

int64_t ppo_loss_scratch_rows(int64_t tokens) { return ppo_loss_blocks(tokens); }

template <class T>
int launch_ppo_loss(const PPOLossArrays<T>& arrays, uintptr_t scratch, int64_t tokens,
                    const PPOLossOptions& options, cudaStream_t stream) {
  const int64_t blocks = ppo_loss_blocks(tokens);
  ppo_loss_kernel<T>
      <<<(unsigned)blocks, PPO_LOSS_THREADS, 0, stream>>>(arrays, (double*)scratch, tokens, options);
  if (const cudaError_t error = cudaGetLastError()) return error;
  ppo_loss_finish<<<1, PPO_LOSS_THREADS, 0, stream>>>((const double*)scratch, blocks, arrays.denominators,
                                                      arrays.loss, arrays.stats, options);
  return cudaGetLastError();
}

template int launch_ppo_loss(const PPOLossArrays<float>&, uintptr_t, int64_t, const PPOLossOptions&,
                             cudaStream_t);
template int launch_ppo_loss(const PPOLossArrays<__nv_bfloat16>&, uintptr_t, int64_t, const PPOLossOptions&,
                             cudaStream_t);

}  // namespace fastrlhf
