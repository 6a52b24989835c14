// Memory for large results, which come and go in the same sizes in every layer and pass.
//
// glibc 2.36 does not give a freed block to the next aligned request of its size, so that what a backward keeps lies
// between holes (130 MB of them beside 350 MB, 30 layers of SmolLM2-135M at 512 tokens); mapping every block instead
// makes the kernel clear its pages each time, a quarter of a step.
#pragma once

#include <cstdint>

namespace fastrlhf {

// A block of at least `bytes`, aligned to a page, with whatever is in it; null where the system has no more.
void* pool_take(int64_t bytes);
// Gives a block back, to be taken again.
void pool_give(void* block, int64_t bytes);
// Returns the idle blocks to the system.
void pool_trim();

struct PoolBytes {
  int64_t taken, idle;
};
PoolBytes pool_bytes();

}  // namespace fastrlhf
