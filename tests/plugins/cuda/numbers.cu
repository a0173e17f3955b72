// The number formats against their definitions, over all codes.
#include <algorithm>
#include <cmath>

#include "program.hpp"

using namespace slipway;

namespace {

bool same(float a, float b) { return __float_as_uint(a) == __float_as_uint(b) || (a != a && b != b); }

// E4M3 as arXiv 2209.05433 defines it.
float e4m3_defined(unsigned code) {
  const int exponent = int(code >> 3 & 15), mantissa = int(code & 7);
  if (exponent == 15 && mantissa == 7) return NAN;
  const float magnitude = exponent ? std::ldexp(1.0f + float(mantissa) / 8, exponent - 7)
                                   : std::ldexp(float(mantissa) / 8, -6);
  return code & 0x80 ? -magnitude : magnitude;
}
// The nearest finite code; of two equally near ones that with an even mantissa.
unsigned e4m3_nearest(float x) {
  if (x != x) return 0x7f;
  const unsigned sign = std::signbit(x) ? 0x80 : 0;
  const double magnitude = std::fabs(double(x));
  if (magnitude > 448) return sign | 0x7e;
  unsigned above = 0;
  while (double(e4m3_defined(above)) < magnitude) above++;
  if (above == 0) return sign;
  const double up = double(e4m3_defined(above)) - magnitude, down = magnitude - double(e4m3_defined(above - 1));
  return sign | (up < down || (up == down && above % 2 == 0) ? above : above - 1);
}

// Floats of every sign, exponent and upper mantissa, at and beside the points where roundings change.
template <class F>
void for_many_floats(F f) {
  for (uint32_t high = 0; high < 65536; high++)
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) f(__uint_as_float(high << 16 | low));
}

void check_e4m3(unsigned) {
  for (unsigned code = 0; code < 256; code++) {
    const float want = e4m3_defined(code);
    expect(same(to_float(e4m3{uint8_t(code)}), want), "to_float of e4m3 " + std::to_string(code));
    expect(same(e4m3_value_by_bits(code), want), "e4m3_value_by_bits of " + std::to_string(code));
    expect(same(emu::e4m3_value(code), want), "the emulator's e4m3 " + std::to_string(code));
  }
  for_many_floats([](float x) {
    const unsigned want = e4m3_nearest(x), got = from_float<e4m3>(x).bits;
    if (want != got || e4m3_by_bits(x) != want) expect_equal(got, want, "e4m3 of " + std::to_string(x));
  });
  expect_equal(pack_e4m3(1, -2, 448, NAN), 0x7f'7e'c0'38u, "pack_e4m3");
}

void check_int8(unsigned) {
  for_many_floats([](float x) {
    const double want = x != x ? 0 : std::clamp(std::nearbyint(double(x)), -127.0, 127.0);
    if (to_int8(x) != int(want)) expect_equal(int(to_int8(x)), int(want), "int8 of " + std::to_string(x));
  });
  expect_equal(int(from_float<int8_t>(2.5f)), 2, "2.5 rounds to even");
  expect_equal(pack_int8(-1, 127, -500, 3.5f), 0x04'81'7f'ffu, "pack_int8");
}

void check_16_bit(unsigned) {
  for (uint32_t code = 0; code < 65536; code++) {
    const __half h{uint16_t(code)};
    const __nv_bfloat16 b{uint16_t(code)};
    expect(same(to_float(h), float(emu::bit_cast<_Float16>(h))), "to_float of half " + std::to_string(code));
    expect(same(to_float(b), __uint_as_float(code << 16)), "to_float of bfloat16 " + std::to_string(code));
  }
  for_many_floats([](float x) {
    if (x != x) {
      expect(to_float(from_float<__half>(x)) != to_float(from_float<__half>(x)), "half of NaN");
      expect(to_float(from_float<__nv_bfloat16>(x)) != to_float(from_float<__nv_bfloat16>(x)), "bfloat16 of NaN");
      return;
    }
    expect(from_float<__half>(x).bits == emu::bit_cast<uint16_t>(_Float16(x)), "half of " + std::to_string(x));
    const uint32_t bits = __float_as_uint(x), low = bits & 0xffff;
    const bool up = low > 0x8000 || (low == 0x8000 && (bits >> 16 & 1));
    expect_equal(from_float<__nv_bfloat16>(x).bits, uint16_t((bits >> 16) + up), "bfloat16 of " + std::to_string(x));
  });
  expect_equal(pack<__half>(1, -2), 0xc0003c00u, "pack");
  expect(unpack<__nv_bfloat16>(0xc0003f80u).y == -2 && unpack<__nv_bfloat16>(0xc0003f80u).x == 1, "unpack");
}

template <class T>
void check_expansion(unsigned) {
  for (unsigned code = 0; code < 256; code++)
    for (int place = 0; place < 4; place++) {
      const uint32_t four = (0x7c25a381u & ~(0xffu << 8 * place)) | code << 8 * place;
      uint32_t out[2];
      const auto got = [&] { return emu::part<T>(out[place / 2], place % 2); };
      const std::string what = " of " + std::to_string(code) + " at " + std::to_string(place);
      expand_e4m3<T>(four, out);
      expect(same(got(), e4m3_defined(code)), "expand_e4m3" + what);
      expand_e4m3_by_bits<T>(four, out);
      expect(same(got(), e4m3_defined(code)), "expand_e4m3_by_bits" + what);
      expand_int8<T>(four, out);
      expect(same(got(), float(int8_t(code))), "expand_int8" + what);
    }
  for (unsigned zero = 0; zero < 16; zero++)
    for (unsigned code = 0; code < 16; code++)
      for (int place = 0; place < 8; place++) {
        uint32_t out[4];
        expand_int4<T>((0x7c25a381u & ~(15u << 4 * place)) | code << 4 * place, int4_zero<T>(zero, zero), out);
        expect_equal(emu::part<T>(out[place % 4], place / 4), float(code) - float(zero),
                     "expand_int4 of " + std::to_string(code) + " at " + std::to_string(place));
      }
  uint32_t out[4];
  expand_int4<T>(0, int4_zero<T>(3, 5), out);
  expect(emu::part<T>(out[0], 0) == -3 && emu::part<T>(out[0], 1) == -5, "two zero points");
}

template <class T>
void check_pairs(unsigned seed) {
  std::mt19937 generator(seed);
  for (int i = 0; i < 20000; i++) {
    const uint32_t a = uint32_t(generator()), b = uint32_t(generator()), c = uint32_t(generator());
    for (int j = 0; j < 2; j++) {
      const long double x = emu::part<T>(a, j), y = emu::part<T>(b, j), z = emu::part<T>(c, j);
      if (!(std::isfinite(double(x)) && std::isfinite(double(y)) && std::isfinite(double(z)))) continue;
      // Two neighbours of a result are exact in double, so comparing distances decides the rounding.
      const auto rounded = [&](uint32_t got, long double want, const char* what) {
        const T r{uint16_t(got >> 16 * j)};
        if (!std::isfinite(to_float(r))) return;
        const long double error = std::fabs(to_float(r) - want);
        for (int step : {-1, 1}) {
          const float other = to_float(T{uint16_t(r.bits + step)});
          if (std::isfinite(other)) expect(error <= std::fabs(other - want), std::string(what) + " is not the nearest");
        }
      };
      rounded(ptx::multiply2<T>(a, b), x * y, "multiply2");
      rounded(ptx::add2<T>(a, b), x + y, "add2");
      rounded(ptx::subtract2<T>(a, b), x - y, "subtract2");
      if (std::fabs(x * y) < 1e6L * std::fabs(z) && std::fabs(z) < 1e6L * std::fabs(x * y))
        rounded(ptx::fma2<T>(a, b, c), x * y + z, "fma2");
      expect_equal(ptx::greater2<T>(a, b) >> 16 * j & 0xffff, x > y ? 0xffffu : 0u, "greater2");
    }
  }
}

template <class T, int N>
void check_vector() {
  std::vector<T> from(size_t(4 * N)), to(size_t(4 * N));
  for (size_t i = 0; i < from.size(); i++) from[i] = from_float<T>(float(i % 100));
  for (int i = 0; i < 4; i++) {
    Vector<T, N> v = Vector<T, N>::load(from.data() + i * N);
    expect(to_float(v[N - 1]) == to_float(from[size_t(i * N + N - 1)]), "Vector's last element");
    if constexpr (Vector<T, N>::kBytes >= 4) v = Vector<T, N>::load_once(from.data() + i * N);
    v.store(to.data() + i * N);
  }
  expect(std::memcmp(from.data(), to.data(), from.size() * sizeof(T)) == 0, "what a Vector loads it stores");
}
void check_vectors(unsigned) {
  check_vector<__half, 8>(), check_vector<__half, 1>(), check_vector<__nv_bfloat16, 2>(), check_vector<float, 4>();
  check_vector<float, 8>(), check_vector<e4m3, 16>(), check_vector<e4m3, 8>(), check_vector<int8_t, 4>();
  check_vector<int8_t, 1>(), check_vector<__half, 16>();
}

void check_bits(unsigned seed) {
  std::mt19937 generator(seed);
  for (int i = 0; i < 1000; i++) {
    const uint32_t a = uint32_t(generator()), b = uint32_t(generator()), c = uint32_t(generator());
    expect(ptx::lop3<ptx::kAndOr>(a, b, c) == ((a & b) | c) && ptx::lop3<ptx::kOr>(a, b, c) == (a | b | c), "lop3");
    expect(ptx::lop3<0x96>(a, b, c) == (a ^ b ^ c), "lop3 of exclusive or");
    expect_equal(__brev(__brev(a)), a, "__brev twice");
    expect_equal(__funnelshift_r(a, b, 0), a, "__funnelshift_r by 0");
    expect_equal(__funnelshift_l(a, b, 8), b << 8 | a >> 24, "__funnelshift_l by 8");
    expect_equal(__umulhi(a, b), uint32_t(uint64_t(a) * b >> 32), "__umulhi");
  }
  expect_equal(ptx::prmt(0x33221100u, 0x77665544u, 0x7520), 0x77552200u, "prmt");
  expect_equal(ptx::prmt(0x80007f00u, 0, 0xb9bb), 0xff00ffffu, "prmt of signs");
  expect(__clz(0) == 32 && __clz(1) == 31 && __ffs(0) == 0 && __ffs(8) == 4 && __popc(0xf0f) == 8, "counts of bits");
  expect(__clzll(1) == 63 && __ffsll(1ll << 40) == 41 && __popcll(~0ull) == 64, "counts of bits in 64");
  expect_equal(__dp4a(int(0xff02fe01u), 0x01020304, 10), 10 + 1 * 4 - 2 * 3 + 2 * 2 - 1 * 1, "__dp4a");
  expect(__float2int_rn(2.5f) == 2 && __float2int_rz(-2.7f) == -2 && __float2int_rd(-2.1f) == -3, "float to int");
  expect(__float2int_rn(1e20f) == INT32_MAX && __float2int_rn(NAN) == 0 && __float2uint_rn(-1.0f) == 0, "saturation");
  expect(ptx::exp2_approx(3.0f) == 8 && ptx::exp2_approx(-INFINITY) == 0, "exp2_approx");
  expect(ptx::exp2_approx(-130.0f) == 0, "exp2_approx of what would be subnormal");
}

}  // namespace

int main(int argc, char** argv) {
  return run_checks(argc, argv,
                    {{"e4m3", check_e4m3},
                     {"int8", check_int8},
                     {"16 bits", check_16_bit},
                     {"expansion to half", check_expansion<__half>},
                     {"expansion to bfloat16", check_expansion<__nv_bfloat16>},
                     {"pairs of half", check_pairs<__half>},
                     {"pairs of bfloat16", check_pairs<__nv_bfloat16>},
                     {"vectors", check_vectors},
                     {"bits", check_bits}});
}
