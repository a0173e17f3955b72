// The C interface: finds the operator, checks its arguments, and turns whatever is thrown into a code and a message.
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "operator.hpp"

// The build names what it was built for, as JSON values: SLIPWAY_VERSION and SLIPWAY_BUILD_HASH strings,
// SLIPWAY_ARCHITECTURES a list of strings.
#ifndef SLIPWAY_VERSION
#define SLIPWAY_VERSION "\"unversioned\""
#define SLIPWAY_BUILD_HASH "\"\""
#define SLIPWAY_ARCHITECTURES "[\"emulated\"]"
#endif

namespace slipway {
namespace {

std::string quoted(const char* text) {
  std::string result = "\"";
  for (const char* c = text; *c; c++) {
    if (*c == '"' || *c == '\\') result += '\\';
    if (*c == '\n') result += "\\n";
    else result += *c;
  }
  return result + "\"";
}

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

const char* role_name(Role role) {
  switch (role) {
    case Role::kInput: return "\"input\"";
    case Role::kOutput: return "\"output\"";
    default: return "\"inout\"";
  }
}

template <class Items, class F>
std::string list(const Items& items, F&& item_text) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + item_text(item);
  return text;
}

std::string described(const Operator& op) {
  auto types = list(op.types, [](const auto& variable) {
    auto names = list(variable.second, [](DType type) { return quoted(dtype_name(type)); });
    return quoted(variable.first.c_str()) + ": [" + names + "]";
  });
  auto tensors = list(op.parameters, [](const Parameter& p) {
    auto shape = list(p.shape, [](const std::string& axis) { return quoted(axis.c_str()); });
    return "{\"name\": " + quoted(p.name) + ", \"role\": " + role_name(p.role) +
           ", \"optional\": " + (p.optional ? "true" : "false") + ", \"strided\": " + (p.strided ? "true" : "false") +
           ", \"type\": " + quoted(p.type) + ", \"shape\": [" + shape + "], \"meaning\": " + quoted(p.meaning) + "}";
  });
  auto attributes = list(op.attributes, [](const Attribute& a) {
    return "{\"name\": " + quoted(a.name) + ", \"default\": " + number(a.standard) + ", \"min\": " + number(a.least) +
           ", \"max\": " + number(a.most) + ", \"integer\": " + (a.integer ? "true" : "false") +
           ", \"meaning\": " + quoted(a.meaning) + "}";
  });
  auto limits = list(op.limits, [](const char* text) { return quoted(text); });
  return "{\"name\": " + quoted(op.name) + ", \"meaning\": " + quoted(op.meaning) + ", \"types\": {" + types +
         "}, \"tensors\": [" + tensors + "], \"attributes\": [" + attributes + "], \"limits\": [" + limits + "]}";
}

const Operator* find(const char* name) {
  for (const Operator* op : operators())
    if (name && !std::strcmp(op->name, name)) return op;
  return nullptr;
}

const Operator& existing(const char* name) {
  if (const Operator* op = find(name)) return *op;
  auto names = list(operators(), [](const Operator* op) { return std::string(op->name); });
  throw Invalid(std::string("no operator ") + (name ? name : "(null)") + "; there are: " + names);
}

int32_t report(slipway_error* error, const char* op, const char* what, int32_t code) {
  if (error) std::snprintf(error->message, sizeof error->message, "%s: %s", op ? op : "(null)", what);
  return code;
}

template <class F>
int32_t guarded(const char* op, slipway_error* error, F&& body) {
  if (error) error->message[0] = '\0';
  try {
    body();
    return SLIPWAY_OK;
  } catch (const Invalid& e) {
    return report(error, op, e.what(), SLIPWAY_INVALID);
  } catch (const Unsupported& e) {
    return report(error, op, e.what(), SLIPWAY_UNSUPPORTED);
  } catch (const CudaError& e) {
    return report(error, op, e.what(), SLIPWAY_CUDA);
  } catch (const std::exception& e) {
    return report(error, op, e.what(), SLIPWAY_INTERNAL);
  } catch (...) {
    return report(error, op, "an exception of unknown type", SLIPWAY_INTERNAL);
  }
}

}  // namespace
}  // namespace slipway

using namespace slipway;

const char* slipway_kernels_info(void) {
  static const std::string text =
      "{\"version\": " SLIPWAY_VERSION ", \"build_hash\": " SLIPWAY_BUILD_HASH
      ", \"architectures\": " SLIPWAY_ARCHITECTURES ", \"operators\": [" +
      list(operators(), [](const Operator* op) { return quoted(op->name); }) + "]}";
  return text.c_str();
}

const char* slipway_describe(const char* name) {
  static const std::map<std::string, std::string> texts = [] {
    std::map<std::string, std::string> all;
    for (const Operator* op : operators()) all[op->name] = described(*op);
    return all;
  }();
  auto found = texts.find(name ? name : "");
  return found == texts.end() ? nullptr : found->second.c_str();
}

int32_t slipway_workspace_bytes(const char* name, const slipway_tensor* tensors, int32_t n_tensors,
                                const double* attributes, int32_t n_attributes, int64_t* bytes,
                                slipway_error* error) {
  return guarded(name, error, [&] {
    const Operator& op = existing(name);
    require(bytes != nullptr, "bytes is NULL");
    *bytes = op.workspace_bytes(Arguments(op, tensors, n_tensors, attributes, n_attributes, false));
  });
}

int32_t slipway_run(const char* name, const slipway_tensor* tensors, int32_t n_tensors, const double* attributes,
                    int32_t n_attributes, void* workspace, int64_t workspace_bytes, void* stream,
                    slipway_error* error) {
  return guarded(name, error, [&] {
    const Operator& op = existing(name);
    const Arguments arguments(op, tensors, n_tensors, attributes, n_attributes, true);
    const int64_t needed = op.workspace_bytes(arguments);
    require(workspace_bytes >= needed, "the workspace has %lld bytes; %lld are needed (slipway_workspace_bytes)",
            static_cast<long long>(workspace_bytes), static_cast<long long>(needed));
    require(needed == 0 || (workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment == 0),
            "the workspace lies at %p; it must be aligned to %lld bytes", workspace,
            static_cast<long long>(kWorkspaceAlignment));
    op.run(arguments, workspace, stream);
  });
}
