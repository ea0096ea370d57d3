// Command lines of the form --name value. Every problem is a std::invalid_argument whose text says what would be right.
#pragma once

#include <cstdio>
#include <exception>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace gpu {

class Arguments {
  public:
    Arguments(int argc, char ** argv) {
        for (int i = 1; i < argc; i += 2) {
            const std::string name = argv[i];
            if (name.rfind("--", 0) != 0 || i + 1 == argc) {
                throw std::invalid_argument(name + ": expected --name value");
            }
            values_[name.substr(2)].push_back(argv[i + 1]);
        }
    }

    std::string text(const std::string & name, const std::string & fallback = "") {
        asked_.insert(name);
        const auto found = values_.find(name);
        return found == values_.end() ? fallback : found->second.back();
    }

    std::string required(const std::string & name) {
        const std::string value = text(name);
        if (value.empty()) { throw std::invalid_argument("--" + name + " is needed"); }
        return value;
    }

    // All values of an argument that may be given several times, in order.
    std::vector<std::string> every(const std::string & name) {
        asked_.insert(name);
        const auto found = values_.find(name);
        return found == values_.end() ? std::vector<std::string>() : found->second;
    }

    int whole(const std::string & name, int fallback, int least, int most) {
        return static_cast<int>(number(name, fallback, least, most, true));
    }

    double real(const std::string & name, double fallback, double least, double most) {
        return number(name, fallback, least, most, false);
    }

    // To be called once everything has been asked for: refuses what nobody asked for.
    void finish() const {
        for (const auto & [name, values] : values_) {
            if (asked_.count(name) > 0) { continue; }
            std::string known;
            for (const std::string & each : asked_) { known += " --" + each; }
            throw std::invalid_argument("--" + name + ": no such argument; there are" + known);
        }
    }

  private:
    double number(const std::string & name, double fallback, double least, double most, bool is_whole) {
        const std::string given = text(name);
        if (given.empty()) { return fallback; }
        size_t used = 0;
        double value = 0;
        try {
            value = is_whole ? static_cast<double>(std::stoll(given, &used)) : std::stod(given, &used);
        } catch (const std::logic_error &) { used = 0; }
        if (used != given.size() || !(value >= least && value <= most)) {
            throw std::invalid_argument("--" + name + " " + given + ": must be a number from " + std::to_string(least) +
                                        " to " + std::to_string(most));
        }
        return value;
    }

    std::map<std::string, std::vector<std::string>> values_;
    std::set<std::string> asked_;
};

// Runs a program's body; what it throws becomes one line on standard error and exit status 1.
template <typename Body>
int run_program(int argc, char ** argv, Body body) {
    try {
        Arguments arguments(argc, argv);
        body(arguments);
        return 0;
    } catch (const std::exception & error) {
        const std::string path = argv[0];
        std::fprintf(stderr, "%s: %s\n", path.substr(path.rfind('/') + 1).c_str(), error.what());
        return 1;
    }
}

}  // namespace gpu
