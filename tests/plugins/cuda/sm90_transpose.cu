// The transposition of 8-bit values in flash_attention's form for sm_90a, byte by byte against its
// definition: which value lies where, in the swizzle that wgmma reads, and that keys beyond the sequence are
// zero.
#include "program.hpp"
#include "slipway/flash_attention_sm90_transpose.cuh"

using slipway::e4m3;

namespace {

// Where byte `at` of a panel lies whose rows have `width` bytes: chunks of 16 bytes change places with the
// number of the 128 bytes they are in.
int place(int at, int width) {
  return at / width * width + (at % width / 16 ^ at / 128 % (width / 16)) * 16 + at % 16;
}

template <class Shape>
__global__ void transposes(const uint8_t* tile, uint8_t* out, int keys) {
  DYNAMIC_SMEM(shared);
  unsigned char* const transposed = shared + Shape::kTileBytes;
  for (int i = threadIdx.x; i < Shape::kTileBytes; i += 96) shared[i] = tile[i], transposed[i] = 0x7f;
  __syncthreads();
  slipway::transpose_values<Shape>(transposed, shared, keys, threadIdx.x / 32, threadIdx.x % 32);
  __syncthreads();
  for (int i = threadIdx.x; i < Shape::kTileBytes; i += 96) out[i] = transposed[i];
}

template <int D, int BlockN>
void check_transposed(unsigned seed) {
  using Shape = slipway::FlashAttentionSm90Shape<e4m3, __half, D, 2, BlockN, true>;
  constexpr int Row = Shape::kRowBytes;
  std::mt19937 generator(seed);
  std::vector<uint8_t> values(size_t(BlockN * D)), tile(values.size()), out(values.size());
  for (uint8_t& x : values) x = uint8_t(generator());
  for (int key = 0; key < BlockN; key++)
    for (int d = 0; d < D; d++)
      tile[size_t(d / Row * BlockN * Row + place(key * Row + d % Row, Row))] = values[size_t(key * D + d)];
  for (int keys : {BlockN, 1000, BlockN - 1, BlockN - 31, 33, 32, 9, 2, 1}) {
    ptx::launch(transposes<Shape>, dim3(1), dim3(96), 2 * Shape::kTileBytes, nullptr, tile.data(), out.data(),
                keys);
    for (int row = 0; row < D; row++)
      for (int position = 0; position < BlockN; position++) {
        // Eight even columns of 16, then the odd ones; keys as a lane's accumulators of wgmma have them.
        const int d = row / 16 * 16 + row % 8 * 2 + row / 8 % 2;
        const int quad = position / 4 % 4, i = position % 4,
                  key = position / 16 * 16 + i / 2 * 8 + quad * 2 + i % 2;
        const int panel = Shape::kPanelKeys;
        const int at = position / panel * D * panel + place(row * panel + position % panel, panel);
        expect_equal(int(out[size_t(at)]), key < keys ? int(values[size_t(key * D + d)]) : 0,
                     "row " + std::to_string(row) + ", position " + std::to_string(position) + " of " +
                         std::to_string(keys) + " keys");
      }
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_checks(argc, argv,
                    {{"heads of 64, 128 keys", check_transposed<64, 128>},
                     {"heads of 64, 160 keys", check_transposed<64, 160>},
                     {"heads of 128, 192 keys", check_transposed<128, 192>},
                     {"heads of 256, 96 keys", check_transposed<256, 96>}});
}
