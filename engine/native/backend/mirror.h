// Computes nodes whose tensors lie in a device's memory on the CPU, by way of copies in host memory. Slow, and right for
// whatever the scheduler may hand over.
#pragma once

#include <vector>

#include "handles.h"

namespace hotcache {

class Mirror {
  public:
    // Waits for `owner`, the backend in whose order the tensors are written, copies down what the nodes read, computes
    // them on `worker` and copies up what they wrote; finished on return.
    ggml_status compute(const ggml_cgraph & graph, ggml_backend_t owner, ggml_backend_t worker);

  private:
    std::vector<char> memory_;
};

}  // namespace hotcache
