// Runs unmodified CUDA kernel bodies on the CPU: one fiber per CUDA thread, blocks one after another.
//
// A fiber runs until it needs the others: at __syncthreads() it waits for the whole block, at a warp
// operation for the lanes of its mask. Threads run in ascending or in descending order, so that a result
// which depends on the order (a missing barrier) differs between the two. A barrier that some threads never
// reach raises instead of hanging, and so does a race in shared memory (shared_memory_races.h).
//
// Include this before the .cuh files, in one translation unit. What is missing is added when a kernel needs
// it: dynamic shared memory, atomics, inline PTX.
#pragma once

#define FASTRLHF_CUDA_ON_CPU 1

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "shared_memory_races.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__ static
#define __device__
#define __host__
#ifdef FASTRLHF_ADDRESS_SANITIZER
#define __shared__ static  // blocks run one after another; AddressSanitizer guards ordinary variables alone
#else
#define __shared__ \
  static thread_local  // each block has a thread of the host, and so shared memory of its own
#endif
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace cuda_on_cpu {

constexpr int WARP_SIZE = 32;
constexpr size_t STACK_BYTES = 64 << 10;

enum class State { READY, AT_BARRIER, AT_WARP, DONE };
enum class WarpOperation { SHUFFLE, BALLOT, SYNC };

struct Fiber {
  ucontext_t context;
  State state;
  // At a warp operation: what this lane brings, from whom it takes, and what it got.
  WarpOperation operation;
  unsigned mask;
  uint64_t brought, got;
  int source;
};

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  std::function<void()> body;
  std::exception_ptr failure;
  Index index, grid, size;
  int current = 0;
  int barriers = 0;
};

inline Block* block;

inline Fiber& me() { return block->fibers[block->current]; }

inline void wait(State state) {
  races.watching = false;
  me().state = state;
  swapcontext(&me().context, &block->scheduler);
}

inline void fiber_main() {
  try {
    block->body();
  } catch (...) {
    block->failure = std::current_exception();
  }
  me().state = State::DONE;
}

inline void resume(int thread) {
  block->current = races.thread = thread;
  races.watching = true;
  swapcontext(&block->scheduler, &block->fibers[thread].context);
  races.watching = false;
  if (block->failure) std::rethrow_exception(block->failure);
}

inline bool waits_with(const Fiber& fiber, const Fiber& other) {
  return other.state == State::AT_WARP && other.mask == fiber.mask && other.operation == fiber.operation;
}

// Exchanges the values of a warp's lanes once every lane of a mask has arrived; true if some could go on.
inline bool release_warp(Fiber* lanes, int count, int warp) {
  for (int lane = 0; lane < count; ++lane) {
    const Fiber fiber = lanes[lane];
    if (fiber.state != State::AT_WARP) continue;
    if (!(fiber.mask >> lane & 1))
      throw std::runtime_error("a lane takes part in a warp operation that leaves it out");
    unsigned arrived = 0, ballot = 0;
    for (int other = 0; other < count; ++other) {
      if (!waits_with(fiber, lanes[other])) continue;
      arrived |= 1u << other;
      if (lanes[other].brought) ballot |= 1u << other;
    }
    if ((arrived & fiber.mask) != fiber.mask) continue;
    for (int other = 0; other < count; ++other) {
      if (!(fiber.mask >> other & 1)) continue;
      const int source = lanes[other].source;
      const bool is_there = source < count && (fiber.mask >> source & 1);
      lanes[other].got = fiber.operation == WarpOperation::BALLOT ? ballot
                         : is_there                               ? lanes[source].brought
                                                                  : lanes[other].brought;
    }
    for (int other = 0; other < count; ++other) {
      if (fiber.mask >> other & 1) lanes[other].state = State::READY;
    }
    if (fiber.operation == WarpOperation::SYNC) warp_synced(warp, fiber.mask);
    return true;
  }
  return false;
}

inline void run_block(bool reversed) {
  std::vector<Fiber>& fibers = block->fibers;
  const int count = (int)fibers.size();
  for (;;) {
    bool moved = false;
    for (int i = 0; i < count; ++i) {
      const int thread = reversed ? count - 1 - i : i;
      if (fibers[thread].state != State::READY) continue;
      resume(thread);
      moved = true;
    }
    for (int first = 0; first < count; first += WARP_SIZE) {
      while (release_warp(&fibers[first], std::min(WARP_SIZE, count - first), first / WARP_SIZE))
        moved = true;
    }
    int done = 0, waiting = 0;
    for (const Fiber& fiber : fibers) {
      done += fiber.state == State::DONE;
      waiting += fiber.state == State::AT_BARRIER;
    }
    if (done == count) return;
    if (waiting == count) {
      for (Fiber& fiber : fibers) fiber.state = State::READY;
      ++block->barriers;
      new_epoch();
    } else if (!moved) {
      throw std::runtime_error("deadlock: " + std::to_string(waiting) + " of " + std::to_string(count) +
                               " threads wait at a barrier, " + std::to_string(done) +
                               " have ended, the others wait for lanes of their warp");
    }
  }
}

// Ends the block with an error. The accesses that lead here have no way to throw: to the compiler they cannot.
inline void race_found(int thread, bool writes, int other, bool other_wrote, size_t at) {
  const std::string message = "race in shared memory: thread " + std::to_string(thread) +
                              (writes ? " writes" : " reads") + " byte " + std::to_string(at) +
                              ", which thread " + std::to_string(other) + (other_wrote ? " wrote" : " read") +
                              ", and no barrier stands between the two";
  block->failure = std::make_exception_ptr(std::runtime_error(message));
  wait(State::DONE);
}

inline void watch(uintptr_t first, size_t bytes) {
  static std::vector<Byte> of;
  if (of.size() < bytes) of.resize(bytes);
  races.first = first;
  races.bytes = bytes;
  races.of = of.data();
  races.found = race_found;
  new_epoch();
}

// Fills this thread's copy of this library's thread-local memory, which is the block's shared memory, with
// ones, and has its accesses watched.
inline void prepare_shared_memory() {
#ifndef FASTRLHF_ADDRESS_SANITIZER
  static thread_local char allocates;
  allocates = 1;
  const auto poison = [](dl_phdr_info* library, size_t, void* ours) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
      const ElfW(Phdr) & part = library->dlpi_phdr[i];
      const char* start = (const char*)library->dlpi_tls_data;
      if (part.p_type == PT_TLS && start && ours >= start && ours < start + part.p_memsz) {
        memset(library->dlpi_tls_data, 0xff, part.p_memsz);
        watch((uintptr_t)library->dlpi_tls_data, part.p_memsz);
        return 1;
      }
    }
    return 0;
  };
  if (!dl_iterate_phdr(poison, &allocates)) throw std::runtime_error("thread-local memory not found");
#endif
}

// Runs `body` (a call of the kernel) for every thread of `blocks` x `threads`.
inline void launch(unsigned blocks, unsigned threads, bool reversed, std::function<void()> body) {
  const size_t bytes = threads * STACK_BYTES;
  char* stacks =
      (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  Block running;
  running.fibers.resize(threads);
  running.body = std::move(body);
  running.grid = {blocks, 1, 1};
  running.size = {threads, 1, 1};
  block = &running;
  std::exception_ptr failure;
  for (unsigned i = 0; i < blocks && !failure; ++i) {
    running.index = {reversed ? blocks - 1 - i : i, 0, 0};
    for (unsigned thread = 0; thread < threads; ++thread) {
      Fiber& fiber = running.fibers[thread];
      fiber.state = State::READY;
      getcontext(&fiber.context);
      fiber.context.uc_stack = {stacks + thread * STACK_BYTES, 0, STACK_BYTES};
      fiber.context.uc_link = &running.scheduler;
      makecontext(&fiber.context, fiber_main, 0);
    }
    std::thread([&] {
      try {
        prepare_shared_memory();
        run_block(reversed);
      } catch (...) {
        failure = std::current_exception();
      }
    }).join();
  }
  block = nullptr;
  munmap(stacks, bytes);
  if (failure) std::rethrow_exception(failure);
}

inline uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t brought, int source) {
  Fiber& fiber = me();
  fiber.operation = operation;
  fiber.mask = mask;
  fiber.brought = brought;
  fiber.source = source;
  wait(State::AT_WARP);
  return fiber.got;
}

// A source outside the lane's own group of `width` gives the lane its own value back, as on a GPU.
template <class T>
T shuffle(unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const int lane = block->current % WARP_SIZE, group = lane / width * width;
  if (source < group || source >= group + width) source = lane;
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_operation(WarpOperation::SHUFFLE, mask, bits, source);
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline int lane() { return block->current % WARP_SIZE; }

inline Index thread_index() { return {(unsigned)block->current, 0, 0}; }

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index())
#define blockIdx (cuda_on_cpu::block->index)
#define blockDim (cuda_on_cpu::block->size)
#define gridDim (cuda_on_cpu::block->grid)

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::State::AT_BARRIER); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle(mask, value, lane / width * width + (source & (width - 1)), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::lane() + (int)distance, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::lane() - (int)distance, width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::lane() ^ flip, width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return (unsigned)cuda_on_cpu::warp_operation(cuda_on_cpu::WarpOperation::BALLOT, mask, predicate != 0, 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_on_cpu::warp_operation(cuda_on_cpu::WarpOperation::SYNC, mask, 0, 0);
}

// Fibers take turns, so an ordinary addition is atomic. Not watched: only a plain access may race with it, and what
// such a race reads depends on the order of the threads.
template <class T>
UNSEEN T atomicAdd(T* at, T more) {
  const T before = *at;
  *at = before + more;
  return before;
}
