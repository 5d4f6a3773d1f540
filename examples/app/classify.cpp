// Runs a classifier of a kit on a file of pixels and prints its highest scores.
//
//   classify FOLDER PIXELS [THREADS]
//
// FOLDER holds the network's plan and weights (kit/sparse), PIXELS its input as raw float32.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "pattern_model.h"

#ifdef ON_A_GPU
static const pattern_function *const kFunctions = nullptr;
#else
// In the object file beside the plan: kit/sparse/sparse.o.
extern "C" const pattern_function pattern_functions_sparse[];
static const pattern_function *const kFunctions = pattern_functions_sparse;
#endif

namespace {

// A network that is closed with its last owner; errors become exceptions.
class Model {
 public:
  Model(const std::string &folder, int threads)
      : model_(pattern_open(folder.c_str(), kFunctions, threads), pattern_close) {
    if (model_ == nullptr) throw std::runtime_error(pattern_error());
  }

  std::vector<float> run(const std::vector<char> &pixels) {
    check(pattern_set_input(model_.get(), 0, pixels.data(), pixels.size()));
    check(pattern_run(model_.get()));
    std::vector<float> scores(pattern_output(model_.get(), 0).bytes / sizeof(float));
    check(pattern_get_output(model_.get(), 0, scores.data(), scores.size() * sizeof(float)));
    return scores;
  }

 private:
  static void check(int result) {
    if (result != 0) throw std::runtime_error(pattern_error());
  }

  std::unique_ptr<pattern_model, decltype(&pattern_close)> model_;
};

std::vector<char> read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void print_best(const std::vector<float> &scores, std::size_t count) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0u);
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  for (std::size_t i = 0; i < count; ++i) {
    std::printf("class %zu: %g\n", order[i], static_cast<double>(scores[order[i]]));
  }
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 3 || count > 4) {
    std::fprintf(stderr, "usage: classify FOLDER PIXELS [THREADS]\n");
    return 2;
  }
  try {
    Model model(arguments[1], count == 4 ? std::atoi(arguments[3]) : 1);
    const std::vector<char> pixels = read_file(arguments[2]);
    model.run(pixels);  // to warm up
    const auto start = std::chrono::steady_clock::now();
    const std::vector<float> scores = model.run(pixels);
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    print_best(scores, 3);
    std::printf("%.3f ms\n", time.count());
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
