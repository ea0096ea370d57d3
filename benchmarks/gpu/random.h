// Random numbers that are the same on every machine, fast enough for gigabytes of weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

namespace gpu {

// splitmix64: a counter through a mixing function, so any key gives an independent stream at once.
class Random {
  public:
    explicit Random(uint64_t key) : state_(key) {}

    // The stream of part `part` of what is called `name`.
    Random(uint64_t seed, std::string_view name, uint64_t part = 0) : state_(seed) {
        for (const char c : name) { state_ = next() ^ static_cast<unsigned char>(c); }
        state_ = next() ^ part;
        state_ = next();
    }

    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

    // From 0 to n - 1; n is small beside 2^64, so the remainder is even enough.
    uint64_t below(uint64_t n) { return next() % n; }

    float normal() {
        if (has_spare_) {
            has_spare_ = false;
            return spare_;
        }
        constexpr double to_unit = 1.0 / 9007199254740992.0;  // 2^-53
        const double u = (static_cast<double>(next() >> 11) + 1.0) * to_unit;
        const double v = static_cast<double>(next() >> 11) * to_unit;
        const double radius = std::sqrt(-2.0 * std::log(u));
        constexpr double turn = 6.283185307179586;
        spare_ = static_cast<float>(radius * std::sin(turn * v));
        has_spare_ = true;
        return static_cast<float>(radius * std::cos(turn * v));
    }

  private:
    uint64_t state_;
    float spare_ = 0;
    bool has_spare_ = false;
};

}  // namespace gpu
