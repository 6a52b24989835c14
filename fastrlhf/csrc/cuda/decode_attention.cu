#include "decode_attention.cuh"

#include "decode_attention.h"

namespace fastrlhf {

template <class T>
int launch_decode_attention(const DecodeProblem<T>& problem, int64_t splits, T* output, float* sums,
                            float* outputs, cudaStream_t stream) {
  if (problem.rows == 0 || problem.heads == 0) return cudaSuccess;
  const DecodeParts parts = {sums, outputs};
  const int error = with_decode_shape(problem, [&](auto shape) {
    decode_attention_kernel<T, decltype(shape)>
        <<<decode_blocks<decltype(shape)>(problem, splits), DECODE_THREADS, 0, stream>>>(problem, splits,
                                                                                         output, parts);
    return (int)cudaGetLastError();
  });
  if (error || splits == 1) return error;
  decode_attention_merge<T><<<(unsigned)(problem.rows * problem.heads), DECODE_THREADS, 0, stream>>>(
      parts, splits, problem.width, output);
  return cudaGetLastError();
}

template int launch_decode_attention(const DecodeProblem<float>&, int64_t, float*, float*, float*,
                                     cudaStream_t);
template int launch_decode_attention(const DecodeProblem<__nv_bfloat16>&, int64_t, __nv_bfloat16*, float*,
                                     float*, cudaStream_t);

}  // namespace fastrlhf
