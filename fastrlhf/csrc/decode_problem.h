// What decode_attention is asked, by the CPU's kernel, CUDA's, and its body compiled for the CPU.
#pragma once

#include <array>
#include <cstdint>

namespace fastrlhf {

// [blocks, block size, key-value heads, width]; the last stride is one.
template <class T>
struct Cache {
  const T* data;
  int64_t block_stride, slot_stride, head_stride;
};

template <class T>
struct DecodeProblem {
  const T* query;  // [rows, heads, width], contiguous
  Cache<T> key, value;
  const int32_t* block_table;  // [rows, max_blocks], contiguous
  const int32_t* lengths;      // [rows]
  int64_t rows, heads, key_heads, width, blocks, block_size, max_blocks;
  float scale;
  float softcap;   // zero: none
  int64_t window;  // zero: none
};

// As the launchers hand it over, see fastrlhf/kernels/decode_attention_arguments.py.
struct DecodeCall {
  std::array<uintptr_t, 3> addresses;            // query, block table, lengths
  std::array<std::array<int64_t, 4>, 2> caches;  // of keys and of values: the address and three strides
  std::array<int64_t, 8> sizes;  // rows, heads, key heads, width, blocks, block size, max_blocks, window
  float scale, softcap;
};

template <class T>
Cache<T> decode_cache(const std::array<int64_t, 4>& from) {
  return {(const T*)from[0], from[1], from[2], from[3]};
}

template <class T>
DecodeProblem<T> decode_problem(const DecodeCall& call) {
  const auto& size = call.sizes;
  return {(const T*)call.addresses[0],
          decode_cache<T>(call.caches[0]),
          decode_cache<T>(call.caches[1]),
          (const int32_t*)call.addresses[1],
          (const int32_t*)call.addresses[2],
          size[0],
          size[1],
          size[2],
          size[3],
          size[4],
          size[5],
          size[6],
          call.scale,
          call.softcap,
          size[7]};
}

}  // namespace fastrlhf
