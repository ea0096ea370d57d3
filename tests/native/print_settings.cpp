// Prints some of the settings that the environment gives, and the problems with it, a line each.
#include <cstdio>

#include "cache/settings.h"

int main() {
    hotcache::Settings settings;
    const std::string problems = hotcache::apply_environment(settings);
    std::printf("device=%s\nslots=%d\nprofile=%s\n", settings.device.c_str(), settings.slots, settings.profile.c_str());
    std::printf("interval=%lld\nhysteresis=%g\n", static_cast<long long>(settings.policy.interval_tokens),
                settings.policy.hysteresis);
    if (!problems.empty()) { std::fprintf(stderr, "%s\n", problems.c_str()); }
    return 0;
}
