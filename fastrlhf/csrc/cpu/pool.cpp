#include "pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>

namespace fastrlhf {
namespace {

// What may lie idle beside the most that was ever taken at once: sizes have their own peaks at different times.
constexpr int64_t SLACK = 8;  // an eighth of it

struct Idle {
  void* block;
  int64_t since;
};

struct Pool {
  std::mutex mutex;
  std::map<int64_t, std::deque<Idle>> idle;  // by size, the latest at the end
  PoolBytes bytes{0, 0};
  int64_t most_taken = 0, clock = 0;
};

// Never destroyed: tensors may be freed after everything else.
Pool& pool() {
  static Pool& one = *new Pool;
  return one;
}

// Sixteen sizes an octave, whole pages: sequences of about the same length share their blocks.
int64_t size_class(int64_t bytes) {
  int64_t step = 4096;
  while (step * 32 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

// Unmaps the blocks that were idle for longest, until no more than `most` bytes are idle.
void limit_idle(Pool& of, int64_t most) {
  while (of.bytes.idle > most) {
    auto oldest = of.idle.begin();
    for (auto at = of.idle.begin(); at != of.idle.end(); ++at)
      if (at->second.front().since < oldest->second.front().since) oldest = at;
    munmap(oldest->second.front().block, oldest->first);
    of.bytes.idle -= oldest->first;
    oldest->second.pop_front();
    if (oldest->second.empty()) of.idle.erase(oldest);
  }
}

}  // namespace

void* pool_take(int64_t bytes) {
  const int64_t size = size_class(bytes);
  Pool& from = pool();
  const std::lock_guard<std::mutex> lock(from.mutex);
  const auto found = from.idle.find(size);
  void* block;
  if (found != from.idle.end()) {
    block = found->second.back().block;
    found->second.pop_back();
    if (found->second.empty()) from.idle.erase(found);
    from.bytes.idle -= size;
  } else {
    const int64_t most = std::max(from.most_taken, from.bytes.taken + size);
    limit_idle(from, std::max<int64_t>(0, most + most / SLACK - from.bytes.taken - size));
    block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return nullptr;
  }
  from.bytes.taken += size;
  from.most_taken = std::max(from.most_taken, from.bytes.taken);
  return block;
}

void pool_give(void* block, int64_t bytes) {
  const int64_t size = size_class(bytes);
  Pool& to = pool();
  const std::lock_guard<std::mutex> lock(to.mutex);
  to.idle[size].push_back({block, to.clock++});
  to.bytes.taken -= size;
  to.bytes.idle += size;
}

void pool_trim() {
  Pool& from = pool();
  const std::lock_guard<std::mutex> lock(from.mutex);
  limit_idle(from, 0);
  from.most_taken = from.bytes.taken;
}

PoolBytes pool_bytes() {
  Pool& of = pool();
  const std::lock_guard<std::mutex> lock(of.mutex);
  return of.bytes;
}

}  // namespace fastrlhf
