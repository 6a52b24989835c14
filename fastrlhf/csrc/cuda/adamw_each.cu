#include "adamw_each.cuh"

#include <cuda_runtime_api.h>

namespace fastrlhf {
namespace {

template <class G>
int launch(const std::vector<AdamWTensor>& tensors, const std::vector<int64_t>& sizes, uintptr_t grad_norm,
           const AdamWNumbers& numbers, cudaStream_t stream) {
  for (size_t start = 0; start < tensors.size(); start += ADAMW_TENSORS) {
    const AdamWTable<G> table = adamw_table<G>(tensors, sizes, grad_norm, start);
    const int blocks = table.first_block[table.count];
    if (blocks == 0) continue;
    adamw_each_kernel<G><<<(unsigned)blocks, ADAMW_THREADS, 0, stream>>>(table, numbers);
    if (const int error = cudaGetLastError()) return error;
  }
  return cudaSuccess;
}

}  // namespace

int launch_adamw_each(bool bfloat16, const std::vector<AdamWTensor>& tensors,
                      const std::vector<int64_t>& sizes, uintptr_t grad_norm, const AdamWNumbers& numbers,
                      uintptr_t stream) {
  return (bfloat16 ? launch<__nv_bfloat16> : launch<float>)(tensors, sizes, grad_norm, numbers,
                                                            (cudaStream_t)stream);
}

}  // namespace fastrlhf
