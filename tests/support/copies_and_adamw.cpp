// The memory manager's native concurrency under ThreadSanitizer: chunks whose optimizer state a worker reads and
// writes (fastrlhf/memory/disk.py: one thread, in order, preadv and pwritev) while AdamW updates others, on threads of
// its own. Argument 1 names what is left out, and has to be noticed: "nothing", "arrival" (a chunk is updated before
// it was read) or "departure" (a buffer is read into before it was written).
//
// GCC's OpenMP library is not known to ThreadSanitizer, which would take its barriers for races: the two functions
// that a parallel loop needs are given here, on std::thread.
#include <sys/uio.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "cpu/adamw.h"

namespace {
constexpr int TEAM = 3;
thread_local int member = 0, members = 1;
}  // namespace

extern "C" {
int omp_get_num_threads() { return members; }
int omp_get_thread_num() { return member; }
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const int team = threads == 1 ? 1 : TEAM;
  std::vector<std::thread> others;
  for (int i = 1; i < team; ++i)
    others.emplace_back([=] {
      member = i, members = team;
      body(data);
    });
  members = team;
  body(data);
  for (auto& other : others) other.join();
  members = 1;
}
}

namespace fastrlhf {
// as in bindings_cpu.cpp, which belongs to the module
bool use_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}
}  // namespace fastrlhf

namespace {

constexpr int CHUNKS = 12, BUFFERS = 3, STEPS = 3;
constexpr int64_t SIZE = 3 * 8192 + 5;  // elements; several blocks of the kernel, and a tail
constexpr size_t BYTES = 3 * SIZE * sizeof(float);

// One thread that does what it is given in order.
class Worker {
 public:
  Worker() : thread_([this] { work(); }) {}
  ~Worker() {
    submit(nullptr);
    thread_.join();
  }
  std::future<void> submit(std::function<void()> job) {
    std::packaged_task<void()> task(job ? job : [] {});
    auto done = task.get_future();
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.emplace_back(std::move(task), !job);
    ready_.notify_one();
    return done;
  }

 private:
  void work() {
    for (bool last = false; !last;) {
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.wait(lock, [this] { return !jobs_.empty(); });
      auto job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job.first();
      last = job.second;
    }
  }
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::pair<std::packaged_task<void()>, bool>> jobs_;
  std::thread thread_;
};

void whole(ssize_t (*call)(int, const iovec*, int, off_t), int file, float* memory, off_t offset) {
  // a disk that is slow, and slowest to write: else a worker that is ahead would order by its queue's lock what
  // nothing else orders
  std::this_thread::sleep_for(std::chrono::microseconds(call == pwritev ? 8000 : 500));
  const iovec part{memory, BYTES};
  if (call(file, &part, 1, offset) != (ssize_t)BYTES) {
    std::perror("copy");
    std::exit(3);
  }
}

// One step of the parameters and both moments, which lie one after the other.
void update(float* chunk, const std::vector<float>& gradients, int step) {
  const fastrlhf::AdamWArrays<float> arrays{
      chunk, gradients.data(), chunk + SIZE, chunk + 2 * SIZE, nullptr, nullptr, nullptr, nullptr, nullptr};
  fastrlhf::AdamWNumbers n{};
  n.lr = 1e-2f, n.grad_scale = 1, n.log_beta1 = std::log(0.9f), n.log_beta2 = std::log(0.999f);
  n.correction1 = 1 - std::pow(0.9f, step), n.correction2 = 1 - std::pow(0.999f, step);
  n.rest1 = 0.1f, n.beta2 = 0.999f, n.rest2 = 0.001f, n.eps = 1e-8f;
  fastrlhf::adamw(arrays, SIZE, n);
}

std::vector<float> first(int chunk) {
  std::vector<float> values(3 * SIZE);
  for (int64_t i = 0; i < SIZE; ++i) values[i] = chunk + i % 7;
  return values;
}

}  // namespace

int main(int, char** arguments) {
  const std::string left_out = arguments[1];
  std::FILE* space = std::tmpfile();
  const int file = fileno(space);
  std::vector<float> gradients(SIZE);
  for (int64_t i = 0; i < SIZE; ++i) gradients[i] = 0.01f * (i % 11 - 5);
  for (int i = 0; i < CHUNKS; ++i) whole(pwritev, file, first(i).data(), i * BYTES);

  std::vector<std::vector<float>> buffers(BUFFERS, std::vector<float>(3 * SIZE));
  std::vector<std::future<void>> leaving(BUFFERS), arriving(BUFFERS);
  {
    Worker worker;
    auto read = [&](int use) {
      float* buffer = buffers[use % BUFFERS].data();
      if (left_out == "departure") {
        // another thread than the worker, which would do it in order anyway
        arriving[use % BUFFERS] =
            std::async(std::launch::async, [=] { whole(preadv, file, buffer, use % CHUNKS * BYTES); });
        return;
      }
      if (leaving[use % BUFFERS].valid()) leaving[use % BUFFERS].get();
      arriving[use % BUFFERS] = worker.submit([=] { whole(preadv, file, buffer, use % CHUNKS * BYTES); });
    };
    read(0);
    for (int use = 0; use < STEPS * CHUNKS; ++use) {
      if (use + 1 < STEPS * CHUNKS) read(use + 1);
      if (left_out != "arrival") arriving[use % BUFFERS].get();
      float* buffer = buffers[use % BUFFERS].data();
      update(buffer, gradients, use / CHUNKS + 1);
      leaving[use % BUFFERS] = worker.submit([=] { whole(pwritev, file, buffer, use % CHUNKS * BYTES); });
    }
  }
  for (int i = 0; i < CHUNKS; ++i) {
    std::vector<float> expected = first(i), found(3 * SIZE);
    for (int step = 1; step <= STEPS; ++step) update(expected.data(), gradients, step);
    whole(preadv, file, found.data(), i * BYTES);
    if (std::memcmp(found.data(), expected.data(), BYTES)) return 4;
  }
  std::puts("the same bits");
}
