// The streaming product by itself, against sums in double: token counts of every tile, shapes with
// tails in all directions, bias, addition, gate and float output. Outputs are poisoned, with a
// guard behind them, and two runs must agree to the bit. A chain of dependent products, recorded as
// a graph, must compute what the same products do one by one.
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "common/device.h"
#include "common/dispatch.h"
#include "device_array.cuh"
#include "linear/stream_linear.h"

namespace treadle::cuda::testing {
namespace {

using ops::DType;

template <class T>
__global__ void reference_kernel(const T* x, const T* w, const float* bias, double* y, int n,
                                 int k) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= n) return;
  const T* row = x + size_t(blockIdx.y) * k;
  double sum = bias != nullptr ? bias[column] : 0.0;
  for (int i = 0; i < k; ++i) {
    sum += double{to_float(row[i])} * double{to_float(w[size_t(column) * k + i])};
  }
  y[size_t(blockIdx.y) * n + column] = sum;
}

struct Shape {
  int n, k;
  bool gated;
};
struct Use {
  bool bias, add, float_output;
};

template <class T>
constexpr DType kType = std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16;

float rounded(DType act, double x) {
  const uint16_t bits = half_bits(act, static_cast<float>(x));
  return float_of(act, reinterpret_cast<const char*>(&bits));
}

template <class T>
class Layer {
 public:
  Layer(const Shape& shape, bool with_bias)
      : w_(size_t(shape.n) * shape.k), bias_(static_cast<size_t>(shape.n)) {
    w_.fill(1, 2.0F / std::sqrt(float(shape.k)));
    bias_.fill(2, 1.0F);
    weight.data = w_.get();
    weight.bias = with_bias ? bias_.get() : nullptr;
    weight.out_features = shape.n;
    weight.in_features = shape.k;
    weight.dtype = kType<T>;
  }
  const T* w() const { return w_.get(); }
  ops::LinearWeight weight;

 private:
  Array<T> w_;
  Array<float> bias_;
};

constexpr size_t kGuard = 64;  // values behind the output

/// One product by `Out` = T or float. Returns the bytes of the first run.
template <class T, class Out>
std::vector<Out> check_product(Report& report, const StreamWorkspace& workspace,
                               const Layer<T>& layer, const Shape& s, const Use& use, int m) {
  const DType act = kType<T>;
  const std::string name = std::string(ops::dtype_name(act)) + " " + std::to_string(m) + "x" +
                           std::to_string(s.n) + "x" + std::to_string(s.k) +
                           (s.gated ? " gated" : "") + (use.bias ? " bias" : "") +
                           (use.add ? " add" : "") + (use.float_output ? " float" : "");
  const int columns = s.gated ? s.n / 2 : s.n;
  const size_t outputs = size_t(m) * columns;
  Array<T> x(size_t(m) * s.k);
  x.fill(3, 1.0F);
  Array<T> before(outputs);
  before.fill(4, 2.0F);
  Array<double> sums(size_t(m) * s.n);
  reference_kernel<<<dim3((s.n + 127) / 128, m), 128>>>(x.get(), layer.w(), layer.weight.bias,
                                                        sums.get(), s.n, s.k);
  Array<Out> y(outputs + kGuard);
  std::vector<Out> got;
  for (int run = 0; run < 2; ++run) {
    y.poison();
    if (use.add) {
      check(cudaMemcpy(y.get(), before.get(), before.bytes(), cudaMemcpyDeviceToDevice), "copy");
    }
    const ops::LinearParams p{.x = x.get(),
                              .weight = &layer.weight,
                              .y = y.get(),
                              .num_tokens = m,
                              .silu_mul = s.gated,
                              .add = use.add,
                              .float_output = use.float_output};
    report.check(supports_stream_linear(p), name + ": not supported");
    stream_linear(p, act, workspace, nullptr);
    check(cudaDeviceSynchronize(), name.c_str());
    std::vector<Out> out = y.host();
    if (run == 0) got = out;
    report.check(std::memcmp(got.data(), out.data(), y.bytes()) == 0, name + ": two runs differ");
  }
  bool guard = true;
  for (size_t i = outputs * sizeof(Out); i < y.bytes(); ++i) {
    guard = guard && reinterpret_cast<const unsigned char*>(got.data())[i] == 0xff;
  }
  report.check(guard, name + ": wrote behind the output");

  const std::vector<double> want_sums = sums.host();
  const std::vector<T> old = before.host();
  double difference = 0.0;
  double total = 0.0;
  double worst = 0.0;
  for (int t = 0; t < m; ++t) {
    for (int i = 0; i < columns; ++i) {
      const double* row = want_sums.data() + size_t(t) * s.n;
      double want = row[i];
      if (s.gated) {
        const double gate = rounded(act, row[i]);
        want = gate / (1.0 + std::exp(-gate)) * rounded(act, row[columns + i]);
      }
      const size_t at = size_t(t) * columns + i;
      if (use.add) want += float_of(act, reinterpret_cast<const char*>(&old[at]));
      const DType out = use.float_output ? DType::kF32 : act;
      const double d = std::fabs(float_of(out, reinterpret_cast<const char*>(&got[at])) - want);
      difference += d;
      total += std::fabs(want);
      worst = d <= worst ? worst : d;  // NaN stays
    }
  }
  // Of rounding alone the mean error is about a third of epsilon.
  const double e = use.float_output ? 1e-5 : epsilon(act);
  report.check(difference < e * total, name + ": mean error " + std::to_string(difference / total));
  report.check(worst < 16 * e, name + ": largest error " + std::to_string(worst));
  got.resize(outputs);
  return got;
}

template <class T>
void test_shape(Report& report, const StreamWorkspace& workspace, const Shape& s) {
  for (const Use& use :
       {Use{false, false, false}, Use{true, true, false}, Use{true, false, true}}) {
    if (s.gated && (use.add || use.float_output)) continue;
    const Layer<T> layer(s, use.bias || s.gated);
    for (const int m : {9, 12, 16, 17, 24, 32, 48, 63, 64, 65, 100, 128}) {
      if (use.float_output) {
        check_product<T, float>(report, workspace, layer, s, use, m);
      } else {
        check_product<T, T>(report, workspace, layer, s, use, m);
      }
    }
  }
}

/// A token's result is the same beside any others.
void test_invariance(Report& report, const StreamWorkspace& workspace) {
  const Shape s{1000, 1536, false};
  const Layer<__half> layer(s, true);
  const auto all = check_product<__half, __half>(report, workspace, layer, s, {}, 128);
  for (const int m : {9, 32, 64}) {
    const auto some = check_product<__half, __half>(report, workspace, layer, s, {}, m);
    report.check(std::memcmp(all.data(), some.data(), some.size() * 2) == 0,
                 "the results of " + std::to_string(m) + " tokens differ from theirs among 128");
  }
}

/// Products that overlap and depend on each other, replayed.
void test_chain(Report& report, const StreamWorkspace& workspace) {
  const int m = 40;
  const int width = 1024;
  const int inner = 2816;
  const Layer<__half> up({2 * inner, width, true}, false);
  const Layer<__half> down({width, inner, false}, false);
  Array<__half> start(size_t(m) * width);
  start.fill(5, 0.5F);
  Array<__half> values(size_t(m) * width);
  Array<__half> h(size_t(m) * inner);
  const StreamHandle stream = make_stream();
  const auto body = [&](bool wait) {
    check(cudaMemcpyAsync(values.get(), start.get(), start.bytes(), cudaMemcpyDeviceToDevice,
                          stream.get()),
          "copy");
    for (int i = 0; i < 6; ++i) {
      stream_linear({.x = values.get(),
                     .weight = &up.weight,
                     .y = h.get(),
                     .num_tokens = m,
                     .silu_mul = true},
                    DType::kF16, workspace, stream.get());
      if (wait) check(cudaStreamSynchronize(stream.get()), "wait");
      stream_linear(
          {.x = h.get(), .weight = &down.weight, .y = values.get(), .num_tokens = m, .add = true},
          DType::kF16, workspace, stream.get());
      if (wait) check(cudaStreamSynchronize(stream.get()), "wait");
    }
  };
  body(true);
  const std::vector<__half> want = values.host();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
  body(false);
  check(cudaStreamEndCapture(stream.get(), &graph), "capture");
  const GraphHandle owned_graph(graph);
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const GraphExecHandle owned_exec(exec);
  for (int run = 0; run < 20; ++run) {
    values.poison();
    h.poison();
    check(cudaGraphLaunch(exec, stream.get()), "replay");
    check(cudaStreamSynchronize(stream.get()), "wait");
    const std::vector<__half> got = values.host();
    report.check(std::memcmp(got.data(), want.data(), start.bytes()) == 0,
                 "a replayed chain differs from its products one by one");
  }
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With an argument: a few small shapes, for the slow tools that watch memory.
int main(int argc, char** /*argv*/) {
  namespace gpu = treadle::cuda;
  namespace test = treadle::cuda::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
      gpu::device_info().capability != 90 || !gpu::stream::built()) {
    std::printf("no GPU with wgmma, or a build without it\n");
    return 77;
  }
  test::Report report;
  const gpu::StreamWorkspace workspace;
  std::vector<test::Shape> shapes = {{72, 72, false}, {144, 520, true}};
  if (argc <= 1) {
    const test::Shape more[] = {{1000, 896, false},  {896, 4864, false},  {4096, 1024, false},
                                {512, 11008, false}, {20008, 328, false}, {40008, 136, false},
                                {1008, 896, true},   {9728, 896, true},   {2816, 2048, true}};
    shapes.insert(shapes.end(), std::begin(more), std::end(more));
  }
  for (const test::Shape& s : shapes) {
    test::test_shape<__half>(report, workspace, s);
    test::test_shape<__nv_bfloat16>(report, workspace, s);
  }
  if (argc <= 1) test::test_invariance(report, workspace);
  test::test_chain(report, workspace);
  return report.finish("stream_linear_test");
}
