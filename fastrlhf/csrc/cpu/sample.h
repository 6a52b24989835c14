// Sampling of the next token on the CPU.
#pragma once

#include "../sample_arguments.h"

namespace fastrlhf {

void sample(const SampleArguments<float>& arguments);

}  // namespace fastrlhf
