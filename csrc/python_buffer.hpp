#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace fmcefast {

// The C-contiguous memory of a Python object, held until destruction; needs the GIL for both.
class PythonBuffer {
 public:
  explicit PythonBuffer(const pybind11::object& object, int flags = 0) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | flags) != 0) throw pybind11::error_already_set();
  }
  ~PythonBuffer() { PyBuffer_Release(&view_); }
  PythonBuffer(const PythonBuffer&) = delete;
  PythonBuffer& operator=(const PythonBuffer&) = delete;
  void* data() const { return view_.buf; }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

}  // namespace fmcefast
