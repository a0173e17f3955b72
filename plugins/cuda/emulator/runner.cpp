// Runs a file of operator calls on the emulated device and writes what they left behind.
//
//     runner CASES RESULTS SEED
//     runner OPERATOR              prints what slipway_describe says of it
//
// Every tensor lies in an allocation of its exact size (strided ones in the span that they cover), so that the
// address sanitizer sees a byte too far; without it, guard bytes around each are looked at. The formats of both
// files are those of plugins/cuda/emulated.py. A case that ends the process is the last one named on stderr.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "slipway/ptx.cuh"
#include "slipway_kernels.h"

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kGuard = 0;
#else
constexpr size_t kGuard = 256;
#endif
constexpr unsigned char kGuardByte = 0xA5, kPoison = 0xFF;

class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    void* raw = nullptr;
    if (posix_memalign(&raw, 256, bytes + 2 * kGuard + (bytes == 0))) std::abort();
    base_.reset(static_cast<unsigned char*>(raw));
    std::memset(base_.get(), kGuardByte, bytes + 2 * kGuard);
    std::memset(data(), kPoison, bytes);
  }
  unsigned char* data() const { return base_.get() + kGuard; }
  size_t bytes() const { return bytes_; }
  bool intact() const {
    for (size_t i = 0; i < kGuard; i++)
      if (base_[i] != kGuardByte || base_[kGuard + bytes_ + i] != kGuardByte) return false;
    return true;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<unsigned char[], Free> base_;
};

template <class T>
T read(std::istream& in) {
  T value;
  in.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}
std::string read_text(std::istream& in) {
  std::string text(read<uint32_t>(in), '\0');
  in.read(text.data(), std::streamsize(text.size()));
  return text;
}
template <class T>
void write(std::ostream& out, T value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof value);
}

void run_case(std::istream& in, std::ostream& out) {
  const std::string name = read_text(in), op = read_text(in);
  std::fprintf(stderr, "case %s\n", name.c_str());
  std::vector<slipway_tensor> tensors(read<uint32_t>(in));
  std::vector<Buffer> buffers;
  for (slipway_tensor& tensor : tensors) {
    tensor = {};
    tensor.dtype = read<int32_t>(in), tensor.rank = read<int32_t>(in);
    in.read(reinterpret_cast<char*>(tensor.shape), sizeof tensor.shape);
    in.read(reinterpret_cast<char*>(tensor.strides), sizeof tensor.strides);
    const auto null = read<int32_t>(in);
    buffers.emplace_back(size_t(read<int64_t>(in)));
    in.read(reinterpret_cast<char*>(buffers.back().data()), std::streamsize(buffers.back().bytes()));
    tensor.data = tensor.dtype == 0 || null ? nullptr : buffers.back().data();
  }
  std::vector<double> attributes(read<uint32_t>(in));
  for (double& value : attributes) value = read<double>(in);

  slipway_error error = {};
  int64_t bytes = 0;
  int32_t code = slipway_workspace_bytes(op.c_str(), tensors.data(), int32_t(tensors.size()), attributes.data(),
                                         int32_t(attributes.size()), &bytes, &error);
  if (code == SLIPWAY_OK) {
    Buffer workspace{size_t(bytes)};
    code = slipway_run(op.c_str(), tensors.data(), int32_t(tensors.size()), attributes.data(),
                       int32_t(attributes.size()), bytes ? workspace.data() : nullptr, bytes, nullptr, &error);
    bool intact = workspace.intact();
    for (const Buffer& buffer : buffers) intact = intact && buffer.intact();
    if (!intact) code = SLIPWAY_INTERNAL, std::snprintf(error.message, sizeof error.message, "guard bytes overwritten");
  }
  write(out, code);
  write(out, uint32_t(std::strlen(error.message)));
  out << error.message;
  for (const Buffer& buffer : buffers) out.write(reinterpret_cast<char*>(buffer.data()), std::streamsize(buffer.bytes()));
  out.flush();
}

}  // namespace

int main(int argc, char** argv) {
  const char* description = argc == 2 ? slipway_describe(argv[1]) : nullptr;
  if (description != nullptr) return std::puts(description) < 0;
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s CASES RESULTS SEED, or %s OPERATOR\n", argv[0], argv[0]);
    return 2;
  }
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  if (!in || !out) {
    std::fprintf(stderr, "cannot open %s or %s\n", argv[1], argv[2]);
    return 2;
  }
  emu::machine.seed = std::strtoull(argv[3], nullptr, 10);
  const auto count = read<uint32_t>(in);
  for (uint32_t i = 0; i < count; i++) run_case(in, out);
  return in && out ? 0 : 2;
}
