// Finds races in shared memory: two threads of a block touch a byte, one of them writes it, and nothing orders
// the two.
//
// The compiler tells of every access: -fsanitize=thread has it call the functions at the end of this file,
// which stand in for its own library. Each byte of shared memory remembers who wrote and who read it last, and
// when: in which barrier epoch of the block, and after how many __syncwarp() of the warp. A shuffle or a ballot
// orders nothing (CUDA C++ Programming Guide, "Warp Shuffle Functions": they do not imply a memory barrier).
//
// The code here must not be instrumented itself, hence plain arrays: a container's own functions would be.
#pragma once

#include <cstddef>
#include <cstdint>

#define UNSEEN __attribute__((no_sanitize_thread))

namespace cuda_on_cpu {

constexpr int MAX_WARPS = 32, LANES = 32, SYNCS_KEPT = 4096;

struct Access {
  uint64_t epoch = 0;  // of the process: blocks and barriers count on, so that nothing is ever cleared
  int thread = -1, syncs = 0;
};

struct Byte {
  Access write, read, read_by_another;
};

struct Races {
  bool watching = false;
  uintptr_t first = 0;  // of shared memory
  size_t bytes = 0;
  Byte* of = nullptr;
  uint64_t epoch = 0;
  int thread = 0;  // the one that runs
  int syncs[MAX_WARPS] = {};
  unsigned masks[MAX_WARPS][SYNCS_KEPT] = {};
  void (*found)(int thread, bool writes, int other, bool other_wrote, size_t at) = nullptr;
};

inline Races races;

// A block begins, or all its threads have met at a barrier.
UNSEEN inline void new_epoch() {
  ++races.epoch;
  for (int warp = 0; warp < MAX_WARPS; ++warp) races.syncs[warp] = 0;
}

// The lanes of `mask` have met at a __syncwarp().
UNSEEN inline void warp_synced(int warp, unsigned mask) {
  races.masks[warp][races.syncs[warp]++ % SYNCS_KEPT] = mask;
}

UNSEEN inline bool ordered(const Access& before, int thread) {
  if (before.thread < 0 || before.thread == thread || before.epoch != races.epoch) return true;
  const int warp = thread / LANES, now = races.syncs[warp];
  if (before.thread / LANES != warp) return false;
  if (now - before.syncs > SYNCS_KEPT) return true;  // forgotten
  const unsigned both = 1u << thread % LANES | 1u << before.thread % LANES;
  for (int sync = before.syncs; sync < now; ++sync)
    if ((races.masks[warp][sync % SYNCS_KEPT] & both) == both) return true;
  return false;
}

UNSEEN inline void accessed(const void* address, size_t size, bool writes) {
  if (!races.watching) return;
  const size_t start = (uintptr_t)address - races.first;
  if (start >= races.bytes) return;  // not shared; below `first` it wraps
  const int thread = races.thread;
  const Access now = {races.epoch, thread, races.syncs[thread / LANES]};
  for (size_t at = start; at < start + size && at < races.bytes; ++at) {
    Byte& byte = races.of[at];
    const Access* other = nullptr;
    if (!ordered(byte.write, thread)) other = &byte.write;
    if (writes && !ordered(byte.read, thread)) other = &byte.read;
    if (writes && !ordered(byte.read_by_another, thread)) other = &byte.read_by_another;
    if (other) {
      races.watching = false;
      races.found(thread, writes, other->thread, other == &byte.write, at);
    }
    if (writes) {
      byte.write = now;
    } else {
      if (byte.read.thread != thread) byte.read_by_another = byte.read;
      byte.read = now;
    }
  }
}

}  // namespace cuda_on_cpu

#define SEEN(bytes)                                                                                         \
  UNSEEN void __tsan_read##bytes(void* address) { cuda_on_cpu::accessed(address, bytes, false); }           \
  UNSEEN void __tsan_write##bytes(void* address) { cuda_on_cpu::accessed(address, bytes, true); }           \
  UNSEEN void __tsan_unaligned_read##bytes(void* address) { cuda_on_cpu::accessed(address, bytes, false); } \
  UNSEEN void __tsan_unaligned_write##bytes(void* address) { cuda_on_cpu::accessed(address, bytes, true); }

// Atomics are the bindings' own (reference counts, guards of static variables), not the kernels'.
#define ATOMIC(bits)                                                                                      \
  UNSEEN uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* at, int) {              \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                       \
  UNSEEN uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* at, uint##bits##_t more, \
                                                        int) {                                            \
    return __atomic_fetch_add(at, more, __ATOMIC_SEQ_CST);                                                \
  }

extern "C" {
ATOMIC(8)
ATOMIC(32)
ATOMIC(64)
SEEN(1)
SEEN(2)
SEEN(4)
SEEN(8)
SEEN(16)
UNSEEN void __tsan_read_range(void* address, size_t size) { cuda_on_cpu::accessed(address, size, false); }
UNSEEN void __tsan_write_range(void* address, size_t size) { cuda_on_cpu::accessed(address, size, true); }
UNSEEN void __tsan_init() {}
UNSEEN void __tsan_func_entry(void*) {}
UNSEEN void __tsan_func_exit() {}
UNSEEN void __tsan_vptr_update(void**, void*) {}
UNSEEN void __tsan_vptr_read(void**) {}
}
