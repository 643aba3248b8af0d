// Takes the place of torch's header of this name while FlashKDA's binding is compiled: what it uses
// of it, without Python and pybind11. Its PYBIND11_MODULE is compiled and never called.
#pragma once

#include <ATen/cuda/CUDAContext.h>
#include <torch/library.h>
#include <torch/types.h>

#include <optional>

namespace py {
struct none {};
struct arg {
  explicit arg(const char*) {}
  template <class Value>
  arg& operator=(Value&&) {
    return *this;
  }
};
}  // namespace py

struct Unbound {
  template <class... What>
  void def(What&&...) {}
};

#define PYBIND11_MODULE(name, module) [[maybe_unused]] static void unbound(Unbound& module)
