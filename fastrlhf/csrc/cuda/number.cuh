// Numbers on the device: dtypes to and from float, and the functions that ppo_loss_token.h asks of its F.
#pragma once

#include <cuda_bf16.h>

#include "../inline.h"

namespace fastrlhf {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

FASTRLHF_INLINE float absolute(float x) { return fabsf(x); }
FASTRLHF_INLINE float square_root(float x) { return sqrtf(x); }
FASTRLHF_INLINE float exponential(float x) { return expf(x); }
FASTRLHF_INLINE Expm1<float> expm1_and_rest(float x) {
  const float e = expm1f(x);
  return {e, e - x};
}

}  // namespace fastrlhf
