#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace fmcefast {

// A failed system call on a file.
class IoError : public std::runtime_error {
 public:
  IoError(int number, std::string failed_path)
      : std::runtime_error(std::strerror(number)), error_number(number), path(std::move(failed_path)) {}

  int error_number;
  std::string path;
};

}  // namespace fmcefast
