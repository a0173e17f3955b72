// What TensorRT looks for in a library of plugins: its creators, and where to put the logger. Nothing of TensorRT is
// linked.
#include <atomic>

#include "creator.hpp"

#define SLIPWAY_EXPORT extern "C" __attribute__((visibility("default")))

namespace slipway_tensorrt {
namespace {
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
}

void log_error(const char* plugin, const char* message) noexcept {
  try {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (logger != nullptr) logger->log(nvinfer1::ILogger::Severity::kERROR, (std::string("plugin ") + plugin + ": " + message).c_str());
  } catch (...) {  // findLogger may throw; there is nobody left to tell
  }
}

}  // namespace slipway_tensorrt

SLIPWAY_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { slipway_tensorrt::logger_finder = finder; }

SLIPWAY_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      slipway_tensorrt::paged_attention_creator(),
      slipway_tensorrt::flash_attention_creator(),
      slipway_tensorrt::int4_gemm_creator(),
  };
  count = int32_t(sizeof creators / sizeof *creators);
  return creators;
}
