// What the test programs of the emulator share: each is a list of named checks. Usage: PROGRAM SEED [NAME...]; prints a
// line a check, its name, a tab, and "ok" or what is wrong.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "slipway/dequantize.cuh"
#include "slipway/numeric.cuh"
#include "slipway/ptx.cuh"

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};
inline void expect(bool condition, const std::string& words) {
  if (!condition) throw Wrong(words);
}
template <class A, class B>
void expect_equal(A got, B want, const std::string& what) {
  if (!(got == A(want))) throw Wrong(what + ": " + std::to_string(got) + " instead of " + std::to_string(want));
}

// Normal numbers, rounded to T.
template <class T>
std::vector<T> random_matrix(int rows, int columns, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> m(size_t(rows * columns));
  for (T& x : m) x = slipway::from_float<T>(normal(generator));
  return m;
}

using Check = std::pair<const char*, std::function<void(unsigned seed)>>;

inline int run_checks(int argc, char** argv, const std::vector<Check>& checks) {
  const unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : 1;
  emu::machine.seed = seed;
  for (const Check& check : checks) {
    bool asked = argc <= 2;
    for (int i = 2; i < argc; i++) asked = asked || std::string(check.first) == argv[i];
    if (!asked) continue;
    std::string words = "ok";
    try {
      check.second(seed);
    } catch (const std::exception& error) {
      words = error.what();
    }
    for (char& c : words)
      if (c == '\n') c = ' ';
    std::printf("%s\t%s\n", check.first, words.c_str());
    std::fflush(stdout);
  }
  return 0;
}
