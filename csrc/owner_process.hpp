#pragma once

#include <unistd.h>

namespace fmcefast {

// A deleter that does nothing after a fork: the child has no threads to join and would wait forever.
template <typename T>
class DeleteInOwnerProcess {
 public:
  void operator()(T* object) const {
    if (::getpid() == owner_) delete object;
  }

 private:
  pid_t owner_ = ::getpid();
};

}  // namespace fmcefast
