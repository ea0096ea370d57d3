// Prints sizes and offsets of every backend table as this project declares them; abi_theirs.cpp as ggml does.
#include "abi_fields.h"
#include "ggml_abi.h"

int main() {
    print_layout();
    std::printf("api_version %d\n", ggml_abi::api_version);
    return 0;
}
