// The random bits of a row's tokens, 32 at a time: word v mod 4 of Philox block v div 4, its top 23 bits.
#pragma once

#include "simd.h"
#include "../philox.h"

#ifdef FASTRLHF_HAS_AVX2_VERSION
#include <immintrin.h>
#endif

namespace fastrlhf {

constexpr int RANDOM_COLUMNS = 32;

typedef void RandomBits(int64_t first_block, const PhiloxStream& stream, int32_t* bits);

inline void random_bits_portable(int64_t first_block, const PhiloxStream& stream, int32_t* bits) {
  for (int block = 0; block < RANDOM_COLUMNS / 4; ++block) {
    const PhiloxWords words = philox((uint32_t)(first_block + block), stream);
    for (int word = 0; word < 4; ++word) bits[4 * block + word] = (int32_t)(words.word[word] >> 9);
  }
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
// Four blocks at a time, a block to each 64-bit lane, whose low half counts: 25 ns for 32 words where the compiler's own
// vectors of the loop above take 49 (it widens products by shuffling).
FASTRLHF_AVX2_WITHOUT_FMA inline void random_bits_avx2(int64_t first_block, const PhiloxStream& stream,
                                                       int32_t* bits) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53u), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57u);
  const __m256i low_half = _mm256_set1_epi64x(0xffffffffu);
  for (int start = 0; start < RANDOM_COLUMNS; start += 16) {
    const int64_t block = first_block + start / 4;
    // in this order unpacking, which works within halves of the register, leaves the words in order
    __m256i c0 = _mm256_setr_epi64x(block, block + 2, block + 1, block + 3);
    __m256i c1 = _mm256_set1_epi64x(stream.counter[0]), c2 = _mm256_set1_epi64x(stream.counter[1]);
    __m256i c3 = _mm256_set1_epi64x(stream.counter[2]);
    uint32_t k0 = stream.key[0], k1 = stream.key[1];
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m256i p0 = _mm256_mul_epu32(multiplier0, c0), p1 = _mm256_mul_epu32(multiplier1, c2);
      c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1), _mm256_set1_epi64x(k0));
      c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3), _mm256_set1_epi64x(k1));
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const __m256i words01 = _mm256_or_si256(_mm256_and_si256(c0, low_half), _mm256_slli_epi64(c1, 32));
    const __m256i words23 = _mm256_or_si256(_mm256_and_si256(c2, low_half), _mm256_slli_epi64(c3, 32));
    const __m256i first = _mm256_srli_epi32(_mm256_unpacklo_epi64(words01, words23), 9);
    const __m256i second = _mm256_srli_epi32(_mm256_unpackhi_epi64(words01, words23), 9);
    memcpy(bits + start, &first, sizeof first);
    memcpy(bits + start + 8, &second, sizeof second);
  }
}
#endif

}  // namespace fastrlhf
