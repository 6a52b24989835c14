// Philox4x32-10: four random words for a counter of four words and a key of two (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", 2011).
#pragma once

#include "inline.h"

namespace fastrlhf {

struct PhiloxStream {
  uint32_t key[2];
  uint32_t counter[3];  // the words after the first
};

struct PhiloxWords {
  uint32_t word[4];
};

FASTRLHF_INLINE PhiloxWords philox(uint32_t c0, const PhiloxStream& stream) {
  uint32_t c1 = stream.counter[0], c2 = stream.counter[1], c3 = stream.counter[2];
  uint32_t k0 = stream.key[0], k1 = stream.key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace fastrlhf
