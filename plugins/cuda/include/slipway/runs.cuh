// Runs of eight elements between memory and registers, in accesses as wide as the array allows.
#pragma once
#include <cstdint>
#include <type_traits>

#include "slipway/numeric.cuh"

namespace slipway {

constexpr int kRun = 8;

// Eight elements as they lie in memory, in whole registers: what has been asked for is not waited for until
// it is taken apart.
template <class T>
struct Run {
  static constexpr int kWords = kRun * int(sizeof(T)) / 4, kPerWord = 4 / int(sizeof(T));
  uint32_t words[kWords];
};

// The elements of a word as floats, the one in its lowest bits first.
template <class T>
__device__ __forceinline__ void split_word(uint32_t word, float (&x)[4 / sizeof(T)]) {
  if constexpr (sizeof(T) == 4) {
    x[0] = __uint_as_float(word);
  } else {
    const float2 pair = unpack<T>(word);
    x[0] = pair.x, x[1] = pair.y;
  }
}

namespace runs {

template <class T, int kWords>
__device__ __forceinline__ void load_words(Run<T>& run, const T* from, int count) {
  if constexpr (kWords <= Run<T>::kWords) {
#pragma unroll
    for (int i = 0; i < Run<T>::kWords; i += kWords) {
      if (i * Run<T>::kPerWord >= count) continue;
      const auto piece =
          Vector<uint32_t, kWords>::load(reinterpret_cast<const uint32_t*>(from + i * Run<T>::kPerWord));
#pragma unroll
      for (int j = 0; j < kWords; j++) run.words[i + j] = piece[j];
    }
  }
}
template <class T, int kWords>
__device__ __forceinline__ void store_words(T* to, const Run<T>& run, int count) {
  if constexpr (kWords <= Run<T>::kWords) {
#pragma unroll
    for (int i = 0; i < Run<T>::kWords; i += kWords) {
      if (i * Run<T>::kPerWord >= count) continue;
      Vector<uint32_t, kWords> piece;
#pragma unroll
      for (int j = 0; j < kWords; j++) piece[j] = run.words[i + j];
      piece.store(reinterpret_cast<uint32_t*>(to + i * Run<T>::kPerWord));
    }
  }
}
// Elements of 1 or 2 bytes one by one; those of 4 bytes are words.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 1, uint8_t, uint16_t>;
template <class T>
__device__ __forceinline__ void load_elements(Run<T>& run, const T* from, int count) {
  if constexpr (sizeof(T) < 4) {
#pragma unroll
    for (int i = 0; i < kRun; i++) {
      if (i >= count) continue;
      const uint32_t bits = reinterpret_cast<const Bits<T>*>(from)[i];
      run.words[i / Run<T>::kPerWord] |= bits << (i % Run<T>::kPerWord * int(sizeof(T)) * 8);
    }
  }
}
template <class T>
__device__ __forceinline__ void store_elements(T* to, const Run<T>& run, int count) {
  if constexpr (sizeof(T) < 4) {
#pragma unroll
    for (int i = 0; i < kRun; i++) {
      if (i >= count) continue;
      const uint32_t word = run.words[i / Run<T>::kPerWord];
      reinterpret_cast<Bits<T>*>(to)[i] = Bits<T>(word >> (i % Run<T>::kPerWord * int(sizeof(T)) * 8));
    }
  }
}

}  // namespace runs

// The first `count` elements at `from` and `from2`; the others are zero. `bytes`: of an access; both
// addresses and counts are multiples of it. 16, 8, 4; less: single elements.
template <class T>
__device__ __forceinline__ void load_two(Run<T>& run, const T* from, int count, Run<T>& run2, const T* from2,
                                         int count2, int bytes) {
  run = {}, run2 = {};
  if (bytes >= 16) {
    runs::load_words<T, 4>(run, from, count), runs::load_words<T, 4>(run2, from2, count2);
  } else if (bytes == 8) {
    runs::load_words<T, 2>(run, from, count), runs::load_words<T, 2>(run2, from2, count2);
  } else if (bytes == 4) {
    runs::load_words<T, 1>(run, from, count), runs::load_words<T, 1>(run2, from2, count2);
  } else {
    runs::load_elements(run, from, count), runs::load_elements(run2, from2, count2);
  }
}
template <class T>
__device__ __forceinline__ void store_two(T* to, const Run<T>& run, int count, T* to2, const Run<T>& run2,
                                          int count2, int bytes) {
  constexpr int kMost = Run<T>::kWords >= 4 ? 4 : 2;  // eight elements of one byte are 8 bytes
  if (bytes >= 4 * kMost) {
    runs::store_words<T, kMost>(to, run, count), runs::store_words<T, kMost>(to2, run2, count2);
  } else if (bytes >= 8) {
    runs::store_words<T, 2>(to, run, count), runs::store_words<T, 2>(to2, run2, count2);
  } else if (bytes == 4) {
    runs::store_words<T, 1>(to, run, count), runs::store_words<T, 1>(to2, run2, count2);
  } else {
    runs::store_elements(to, run, count), runs::store_elements(to2, run2, count2);
  }
}

}  // namespace slipway
