// Prints what the cache reads from a recorded pass: the model, then workload, layer and counts, a line each.
#include <cstdio>

#include "cache/routing_profile.h"

int main(int argc, char ** argv) {
    if (argc != 2) { return 2; }
    const auto read = hotcache::read_routing_profile(argv[1]);
    if (const auto * problem = std::get_if<std::string>(&read)) {
        std::fprintf(stderr, "%s\n", problem->c_str());
        return 1;
    }
    const auto & profile = std::get<hotcache::RoutingProfile>(read);
    std::printf("%s\n", profile.model.c_str());
    for (const auto & [workload, layers] : profile.workloads) {
        for (const auto & [layer, counts] : layers) {
            std::printf("%s %d", workload.c_str(), layer);
            for (const uint32_t count : counts) { std::printf(" %u", count); }
            std::printf("\n");
        }
    }
}
