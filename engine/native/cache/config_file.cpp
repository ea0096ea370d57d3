#include "config_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>

namespace hotcache {

namespace {

constexpr size_t most_file_bytes = 64 << 10;
constexpr size_t most_line_bytes = 1024;
constexpr int most_problems = 20;
constexpr const char * blanks = " \t\r";

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string trimmed(const std::string & text) {
    const size_t first = text.find_first_not_of(blanks);
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

// A # inside a word belongs to it: file names have them.
std::string without_comment(const std::string & line) {
    for (size_t at = line.find('#'); at != std::string::npos; at = line.find('#', at + 1)) {
        if (at == 0 || is_blank(line[at - 1])) { return line.substr(0, at); }
    }
    return line;
}

// Everything in the file; or nothing, with `problem` saying why.
std::optional<std::string> read_text(const std::string & path, std::string & problem) {
    // Opening a named pipe would wait for a writer, and a device may never end.
    struct stat status {};
    if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
        problem = "is not a file that can be read; correct or unset HOTCACHE_CONFIG";
        return std::nullopt;
    }
    std::ifstream file(path, std::ios::binary);
    std::string text(most_file_bytes + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
    if (!file.eof() && text.size() <= most_file_bytes) {
        problem = "cannot be read; allow this user to read it";
        return std::nullopt;
    }
    if (text.size() > most_file_bytes) {
        problem = "is larger than " + std::to_string(most_file_bytes >> 10) + " KiB: not a file of settings";
        return std::nullopt;
    }
    const auto is_control = [](unsigned char c) {
        return (c < ' ' && c != '\n' && c != '\t' && c != '\r') || c == 127;
    };
    if (std::any_of(text.begin(), text.end(), is_control)) {
        problem = "is not a text file";
        return std::nullopt;
    }
    return text;
}

// Sets what one line says, an empty one nothing. Returns an empty string or what is wrong.
std::string apply_line(Settings & settings, const std::string & line, std::set<std::string> & seen) {
    if (line.size() > most_line_bytes) { return "longer than " + std::to_string(most_line_bytes) + " characters"; }
    const std::string text = trimmed(without_comment(line));
    if (text.empty()) { return {}; }
    const size_t equals = text.find('=');
    const std::string key = trimmed(text.substr(0, equals));
    const std::string value = equals == std::string::npos ? "" : trimmed(text.substr(equals + 1));
    if (key.empty() || value.empty()) { return "'" + text + "' is not 'key = value'"; }
    if (!seen.insert(key).second) { return key + " is set a second time"; }
    return apply_setting(settings, key, value);
}

}  // namespace

std::string apply_config_file(Settings & settings, const std::string & path) {
    std::string problem;
    const auto text = read_text(path, problem);
    if (!text) { return path + ": " + problem; }

    std::string problems;
    std::set<std::string> seen;
    int found = 0;
    int number = 0;
    for (size_t start = 0; start < text->size();) {
        const size_t end = std::min(text->find('\n', start), text->size());
        ++number;
        problem = apply_line(settings, text->substr(start, end - start), seen);
        start = end + 1;
        if (problem.empty()) { continue; }
        problems += (found == 0 ? "" : "\n") + path + ":" + std::to_string(number) + ": " + problem;
        if (++found == most_problems) { return problems + "\n" + path + ": not read any further"; }
    }
    return problems;
}

}  // namespace hotcache
