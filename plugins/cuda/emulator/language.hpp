// The words of CUDA C++ that are not C++: specifiers, vector types, intrinsics of one thread.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline  // by the compiler's own choice: inlined everywhere, kernels compile far longer
// A C++ static would live as long as the process, shared by all blocks and never poisoned.
#define __shared__ _Pragma("GCC error \"take shared memory by DYNAMIC_SMEM(name) or STATIC_SMEM(type, name, count)\"")

// Arithmetic of the emulator itself: nothing in it is for a sanitizer to find.
#define EMU_FAST __attribute__((no_sanitize("address", "undefined", "thread")))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Vector types with CUDA's alignments, and their make_ functions.
#define EMU_VECTORS(name, T, align2, align4)                                                       \
  struct alignas(align2) name##2 { T x, y; };                                                      \
  struct name##3 { T x, y, z; };                                                                   \
  struct alignas(align4) name##4 { T x, y, z, w; };                                                \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                                    \
  constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                            \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(char, signed char, 2, 4)
EMU_VECTORS(uchar, unsigned char, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(ushort, unsigned short, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(uint, unsigned, 8, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(longlong, long long, 16, 16)
EMU_VECTORS(ulonglong, unsigned long long, 16, 16)
#undef EMU_VECTORS

// CUDA has these for all arithmetic types in the global namespace.
#define EMU_MIN_MAX(T)                                     \
  constexpr T min(T a, T b) { return b < a ? b : a; }      \
  constexpr T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

namespace emu {
template <class To, class From>
EMU_FAST inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// cvt.*.s32.f32 saturates and turns NaN into 0 (PTX ISA, cvt).
template <class To>
EMU_FAST inline To saturated(double x) {
  constexpr To least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
  return x != x ? To(0) : x <= double(least) ? least : x >= double(most) ? most : To(x);
}
}  // namespace emu

// ---- bits -------------------------------------------------------------------------------------------
EMU_FAST inline unsigned __float_as_uint(float x) { return emu::bit_cast<unsigned>(x); }
EMU_FAST inline int __float_as_int(float x) { return emu::bit_cast<int>(x); }
EMU_FAST inline float __uint_as_float(unsigned x) { return emu::bit_cast<float>(x); }
EMU_FAST inline float __int_as_float(int x) { return emu::bit_cast<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
  return unsigned(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
  return unsigned(((unsigned long long)hi << 32 | lo) >> (n & 31));
}
// prmt.b32 in its default mode: nibble i of the selector picks byte i among the eight of (b, a); its top bit
// replicates that byte's sign instead (PTX ISA, prmt).
EMU_FAST inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned s = selector >> 4 * i & 15, byte = unsigned(bytes >> 8 * (s & 7) & 0xff);
    result |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
  }
  return result;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
  return c;
}

// ---- floating point ---------------------------------------------------------------------------------
// -std=c++17 keeps the compiler from fusing a product and a sum, so plain operators are the _rn functions.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / std::sqrt(double(a))); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return float(1.0 / std::sqrt(double(a))); }
inline float __saturatef(float a) { return a != a ? 0.0f : std::fmin(std::fmax(a, 0.0f), 1.0f); }
// Approximate on the device; here exact.
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return float(std::pow(10.0, double(x))); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline void __sincosf(float x, float* s, float* c) { *s = std::sin(x), *c = std::cos(x); }
inline float __fdividef(float a, float b) { return a / b; }

inline int __float2int_rn(float x) { return emu::saturated<int>(std::nearbyint(double(x))); }
inline int __float2int_rz(float x) { return emu::saturated<int>(std::trunc(double(x))); }
inline int __float2int_rd(float x) { return emu::saturated<int>(std::floor(double(x))); }
inline int __float2int_ru(float x) { return emu::saturated<int>(std::ceil(double(x))); }
inline unsigned __float2uint_rn(float x) { return emu::saturated<unsigned>(std::nearbyint(double(x))); }
inline unsigned __float2uint_rz(float x) { return emu::saturated<unsigned>(std::trunc(double(x))); }
inline unsigned __float2uint_rd(float x) { return emu::saturated<unsigned>(std::floor(double(x))); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

// ---- loads and stores with a cache hint -------------------------------------------------------------
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stcg(T* p, T v) { *p = v; }
