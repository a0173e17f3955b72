// What the operators over rows (norms, activations) ask of their outputs, and how they are started.
#pragma once
#include "device.hpp"
#include "dispatch.hpp"
#include "operator.hpp"
#include "slipway/rows.cuh"

namespace slipway {

// The parameters of the description that say how results leave; see RowOutput.
inline Parameter scale_input() {
  return optional_input("scale", "float32", {"1"}, "of a quantized output: output = round(result / scale)");
}
inline Parameter row_scale_output() {
  return optional_output("row_scale", "float32", {"rows"},
                         "of a quantized output, instead of scale: each row's largest |result| / 127 (int8) or 448 "
                         "(float8e4m3fn)");
}
constexpr const char* kOutputLimit =
    "output: of type T, or int8 or float8e4m3fn with exactly one of scale and row_scale";

// Calls f(Tag<T>, Tag<Out>) after checking that the output's type and the scales agree.
template <class F>
void dispatch_rows(const Arguments& a, F&& f) {
  const DType type = a.type("T"), out = a.type("O");
  const bool quantized = out == kInt8 || out == kFloat8E4M3;
  const int scales = int(a.has("scale")) + int(a.has("row_scale"));
  if (quantized) {
    require(scales == 1, "output is %s, and %s given; it needs exactly one of scale and row_scale",
            std::string(dtype_name(out)).c_str(), scales == 0 ? "neither scale nor row_scale is" : "both scales are");
  } else {
    require(out == type, "output is %s; it must be of the input's type (%s), int8 or float8e4m3fn",
            std::string(dtype_name(out)).c_str(), dtype_name(type));
    require(scales == 0, "output is %s, which is not quantized, but a scale is given", dtype_name(out));
  }
  dispatch_float(type, [&](auto tag) {
    if (out == kInt8) f(tag, Tag<int8_t>{});
    else if (out == kFloat8E4M3) f(tag, Tag<e4m3>{});
    else f(tag, tag);
  });
}

template <class Out>
RowOutput<Out> row_output(const Arguments& a) {
  return {a.data<Out>("output"), a.data<const float>("scale"), a.data<float>("row_scale")};
}

// Calls launch(std::integral_constant<RowForm, ...>, plan, blocks) unless there is nothing to do.
template <class F>
void dispatch_form(int64_t rows, int64_t columns, F&& launch) {
  if (rows == 0 || columns == 0) return;
  const RowPlan plan = plan_rows(columns);
  const dim3 blocks(unsigned(row_blocks(plan, rows, device().sm_count)));
  switch (plan.form) {
    case RowForm::kWarp: return launch(std::integral_constant<RowForm, RowForm::kWarp>{}, plan, blocks);
    case RowForm::kBlock: return launch(std::integral_constant<RowForm, RowForm::kBlock>{}, plan, blocks);
    case RowForm::kReread: return launch(std::integral_constant<RowForm, RowForm::kReread>{}, plan, blocks);
  }
}

}  // namespace slipway
