// Recorded steps: when the body runs and when a recording does, how many are kept, and what makes
// them stale.
#include <functional>
#include <stdexcept>
#include <string>

#include "check.h"
#include "common/check.h"
#include "common/graph_cache.h"

namespace treadle::cuda::testing {
namespace {

__global__ void add(int* counter, int amount) { *counter += amount; }

/// A counter on the GPU, and how often bodies were called on the host.
class Steps {
 public:
  explicit Steps(Report& report) : report_(report), memory_(make_device_memory(sizeof(int))) {
    check(cudaMemset(memory_.get(), 0, sizeof(int)), "zero");
  }

  /// Runs `key`, whose body adds `key + 1`, and says whether the body was called.
  bool run(uint64_t key, const std::function<void()>& before = {}) {
    const int calls = calls_;
    const std::function<void()> body = [this, key, before] {
      ++calls_;
      if (before) before();
      add<<<1, 1, 0, stream_.get()>>>(static_cast<int*>(memory_.get()), static_cast<int>(key) + 1);
    };
    cache.run(
        key, [](void* context) { (*static_cast<const std::function<void()>*>(context))(); },
        const_cast<std::function<void()>*>(&body), stream_.get());
    expected_ += static_cast<int>(key) + 1;
    return calls_ > calls;
  }

  /// Each run did its work once, whichever way.
  void expect_sum(const std::string& when) {
    int sum = 0;
    check(cudaStreamSynchronize(stream_.get()), "steps");
    check(cudaMemcpy(&sum, memory_.get(), sizeof(int), cudaMemcpyDeviceToHost), "download");
    report_.check(sum == expected_,
                  when + ": " + std::to_string(sum) + ", not " + std::to_string(expected_));
  }

  GraphCache cache;

 private:
  Report& report_;
  DeviceMemory memory_;
  StreamHandle stream_ = make_stream();
  int calls_ = 0;
  int expected_ = 0;
};

void test_stages(Report& report) {
  Steps steps(report);
  report.check(steps.run(7), "the first run is not eager");
  report.check(steps.run(7), "the second run does not record");
  for (int i = 0; i < 3; ++i) report.check(!steps.run(7), "a recording is not replayed");
  report.check(steps.run(8), "another key is taken for the same");
  steps.expect_sum("three stages");
}

void test_limit(Report& report) {
  constexpr int kKept = 64;
  Steps steps(report);
  for (int round = 0; round < 2; ++round) {
    for (uint64_t key = 0; key < kKept; ++key) steps.run(key);
  }
  report.check(steps.cache.size() == kKept, "fewer recordings than there is room for");
  report.check(!steps.run(0), "a recording went while there was room");
  for (uint64_t key = kKept; key < kKept + 10; ++key) steps.run(key);
  report.check(steps.cache.size() == kKept, "more recordings than there is room for");
  report.check(!steps.run(0), "the one that was used last went");
  report.check(!steps.run(kKept - 1), "one that was used late went");
  report.check(steps.run(1), "the one that was unused for longest stayed");
  steps.expect_sum("many keys");
}

void test_new_buffers(Report& report) {
  Steps steps(report);
  for (int i = 0; i < 3; ++i) steps.run(3);
  const DeviceMemory buffer = make_device_memory(1024);
  report.check(steps.run(3), "a recording outlived a new buffer");
  report.check(steps.run(3), "it was not recorded again");
  report.check(!steps.run(3), "the new recording is not replayed");

  DeviceMemory made;
  const auto make = [&made] { made = make_device_memory(2048); };
  report.check(steps.run(4, make), "a body that makes a buffer did not run");
  report.check(steps.run(4), "it was kept, but its addresses may be old");
  steps.expect_sum("new buffers");
}

void test_errors(Report& report) {
  Steps steps(report);
  steps.run(5);
  std::string caught;
  try {
    steps.run(5, [] { throw std::runtime_error("in the middle"); });
  } catch (const std::runtime_error& error) {
    caught = error.what();
  }
  report.check(caught == "in the middle", "what a recorded body throws is lost");
  report.check(steps.run(5), "a recording that failed was kept");
  report.check(!steps.run(5), "after an error nothing is recorded any more");
  steps.expect_sum("an error while recording");
}

}  // namespace
}  // namespace treadle::cuda::testing

int main() {
  namespace test = treadle::cuda::testing;
  if (int count = 0; cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("SKIP: no GPU\n");
    return 77;
  }
  test::Report report;
  test::test_stages(report);
  test::test_limit(report);
  test::test_new_buffers(report);
  test::test_errors(report);
  return report.finish("graph_cache_test");
}
