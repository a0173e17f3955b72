// Reads the JSON that the kernels' library writes of itself: objects, lists, strings, numbers, true and false.
#pragma once
#include <cctype>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace slipway_tensorrt {

struct Json {
  double number = 0;  // 1 for true
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  const Json& at(const std::string& name) const {
    for (const auto& [key, value] : members)
      if (key == name) return value;
    throw std::runtime_error("the kernels' description lacks " + name);
  }
};

class JsonReader {
 public:
  explicit JsonReader(const char* text) : at_(text) {}

  Json read() {
    Json value;
    switch (next()) {
      case '{':
        each('}', [&] {
          std::string name = string();
          expect(':');
          value.members.emplace_back(std::move(name), read());
        });
        break;
      case '[':
        each(']', [&] { value.items.push_back(read()); });
        break;
      case '"':
        value.text = string();
        break;
      case 't':
        word("true");
        value.number = 1;
        break;
      case 'f':
        word("false");
        break;
      default: {
        char* end = nullptr;
        value.number = std::strtod(at_, &end);
        if (end == at_) fail();
        at_ = end;
      }
    }
    return value;
  }

 private:
  char next() {
    while (std::isspace(static_cast<unsigned char>(*at_))) at_++;
    return *at_;
  }

  void expect(char wanted) {
    if (next() != wanted) fail();
    at_++;
  }

  void word(const char* wanted) {
    for (; *wanted; wanted++, at_++)
      if (*at_ != *wanted) fail();
  }

  template <class F>
  void each(char end, F&& item) {
    at_++;
    if (next() == end) {
      at_++;
      return;
    }
    for (;;) {
      item();
      if (next() == end) break;
      expect(',');
    }
    at_++;
  }

  std::string string() {
    expect('"');
    std::string text;
    for (; *at_ != '"'; at_++) {
      if (*at_ == '\0') fail();
      if (*at_ == '\\') at_++;
      text += *at_;
    }
    at_++;
    return text;
  }

  [[noreturn]] void fail() const { throw std::runtime_error("the kernels' description is no JSON"); }

  const char* at_;
};

}  // namespace slipway_tensorrt
