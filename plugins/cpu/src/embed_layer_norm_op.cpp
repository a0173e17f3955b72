// EmbedLayerNormalization: rows of two or three tables, their sum and its normalization in one pass.
#include <string>
#include <vector>

#include "for_rows.h"
#include "kernels.h"
#include "packed_ops.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// A table and the row of it that each row of the result takes.
struct Lookup {
  const char* name;
  Tensor ids, table;

  // The id at `place`. Negative ones count from the table's end, as Gather has it.
  int64_t id(int64_t place) const {
    const int64_t given =
        ids.type == ort::kInt64 ? ids.as<const int64_t>()[place] : ids.as<const int32_t>()[place];
    const int64_t id = given < 0 ? given + table.shape[0] : given;
    if (id >= 0 && id < table.shape[0]) return id;
    throw InvalidArgument(std::string(name) + " holds " + std::to_string(given) + "; the table has " +
                          std::to_string(table.shape[0]) + " rows");
  }
  const float* row(int64_t id) const { return table.as<const float>() + id * table.shape[1]; }
};

int64_t elements(const Tensor& tensor) { return tensor.rank == 0 ? 1 : tensor.rows() * tensor.last(); }

void check_lookup(const Lookup& lookup, int64_t rows, int64_t width) {
  const bool typed = lookup.ids.type == ort::kInt64 || lookup.ids.type == ort::kInt32;
  const int64_t count = typed ? elements(lookup.ids) : 0;
  if (!typed || lookup.table.rank != 2 || lookup.table.shape[1] != width || count < 1 || rows % count != 0) {
    throw InvalidArgument(std::string(lookup.name) + " has shape " + describe(lookup.ids) + ", its table " +
                          describe(lookup.table) + "; integers that repeat a whole number of times in " +
                          std::to_string(rows) + " rows, and [rows, " + std::to_string(width) +
                          "] are needed");
  }
}

}  // namespace

void run_embed_layer_normalization(float epsilon, const ort::Call& call) {
  const Tensor weight = call.input(4), bias = call.input(5);
  const Lookup first{"ids", call.input(0), call.input(1)}, second{"second_ids", call.input(2), call.input(3)},
      third{"third_ids", call.input(6), call.input(7)};
  if (first.table.rank != 2 || weight.rank != 1 || weight.shape[0] != first.table.shape[1] ||
      (bias && (bias.rank != 1 || bias.shape[0] != weight.shape[0]))) {
    throw InvalidArgument("table has shape " + describe(first.table) + ", weight " + describe(weight) +
                          "; weight and bias must be as long as a row");
  }
  const int64_t rows = elements(first.ids), width = weight.shape[0];
  std::vector<int64_t> shape(first.ids.shape, first.ids.shape + first.ids.rank);
  shape.push_back(width);
  float* output = static_cast<float*>(call.output(0, shape.data(), shape.size()));
  float* sum = static_cast<float*>(call.output(1, shape.data(), shape.size()));
  if (rows == 0) return;
  check_lookup(first, rows, width);
  check_lookup(second, rows, width);
  if (third.table) check_lookup(third, rows, width);
  // Ids are looked at before any thread starts: a bad one is an error in words.
  const int64_t seconds = elements(second.ids), thirds = third.table ? elements(third.ids) : 1;
  std::vector<const float*> summands(size_t(rows) * 3);
  for (int64_t r = 0; r < rows; ++r) {
    summands[size_t(r) * 3] = first.row(first.id(r));
    summands[size_t(r) * 3 + 1] = second.row(second.id(r % seconds));
    summands[size_t(r) * 3 + 2] = third.table ? third.row(third.id(r % thirds)) : nullptr;
  }
  const Kernels& kernels = active_kernels();
  for_rows(call, rows, width, [&](int64_t r) {
    const float* const* from = summands.data() + r * 3;
    const SkipLayerRow pointers{from[0],
                                from[1],
                                from[2],
                                weight.as<float>(),
                                bias ? bias.as<float>() : nullptr,
                                output + r * width,
                                sum ? sum + r * width : nullptr};
    kernels.skip_layer_row(pointers, epsilon, width);
  });
}

}  // namespace slipway::cpu
