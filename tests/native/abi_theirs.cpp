#include "abi_fields.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

int main() {
    print_layout();
    std::printf("api_version %d\n", GGML_BACKEND_API_VERSION);
    return 0;
}
