// AdamW, eight parameters at a time; bound by memory. The vector arithmetic of a tail is that of the whole
// vectors before it, so that where a chunk begins and ends changes no bit. Stores past the cache would pay for
// the copy alone, which nobody has read: 4 % of the whole, too little for code that one processor has.
#include "adamw.h"

#include <algorithm>

namespace fastrlhf {
namespace {

constexpr int64_t BLOCK = 8192;

FASTRLHF_INLINE f8 load_gradient(const float* from, int count) { return load(from, count); }
FASTRLHF_INLINE f8 load_gradient(const uint16_t* from, int count) { return load_bfloat16(from, count); }

template <class G>
FASTRLHF_INLINE void update_block(const AdamWArrays<G>* a, const AdamWStep* step, int64_t begin,
                                  int64_t length) {
  for_eights(length, [&](int64_t offset, int count) __attribute__((always_inline)) {
    const int64_t at = begin + offset;
    f8 parameter = load(a->parameters + at, count), exp_avg = load(a->exp_avg + at, count);
    f8 exp_avg_sq = load(a->exp_avg_sq + at, count);
    adamw_update(load_gradient(a->gradients + at, count), parameter, exp_avg, exp_avg_sq, *step);
    store(a->parameters + at, parameter, count);
    store(a->exp_avg + at, exp_avg, count);
    store(a->exp_avg_sq + at, exp_avg_sq, count);
    if (a->bfloat16_copy) store_bfloat16(a->bfloat16_copy + at, parameter, count);
  });
}

template <class G>
void run(const AdamWArrays<G>& arrays, int64_t size, const AdamWNumbers& numbers) {
  const AdamWStep step = adamw_step(arrays, numbers);
  if (step.skipped) return;
  const int64_t blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (int64_t i = 0; i < blocks; ++i) {
    on_vectors<update_block<G>>(&arrays, &step, i * BLOCK, std::min(BLOCK, size - i * BLOCK));
  }
}

}  // namespace

void adamw(const AdamWArrays<float>& arrays, int64_t size, const AdamWNumbers& numbers) {
  run(arrays, size, numbers);
}

void adamw(const AdamWArrays<uint16_t>& arrays, int64_t size, const AdamWNumbers& numbers) {
  run(arrays, size, numbers);
}

}  // namespace fastrlhf
