// The launch of `sample`: no synchronisation, and a cudaError_t (as an int) instead of an exception.
#pragma once

#include <cuda_runtime_api.h>

#include "../sample_arguments.h"

namespace fastrlhf {

template <class T>
int launch_sample(const SampleArguments<T>& arguments, cudaStream_t stream);

}  // namespace fastrlhf
