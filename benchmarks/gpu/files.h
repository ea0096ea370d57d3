// Files that close themselves and say what went wrong.
#pragma once

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

namespace gpu {

class File {
  public:
    // Throws std::runtime_error when `path` cannot be opened; `mode` is fopen's.
    File(std::string path, const char * mode) : path_(std::move(path)), file_(std::fopen(path_.c_str(), mode)) {
        if (file_ == nullptr) { fail("cannot be opened"); }
    }

    void write(const void * data, size_t bytes) {
        if (std::fwrite(data, 1, bytes, file_.get()) != bytes) { fail("cannot be written"); }
    }

    // False at the end of the file; throws when it ends in the middle of `bytes`.
    bool read(void * data, size_t bytes) {
        const size_t got = std::fread(data, 1, bytes, file_.get());
        if (got != bytes && got != 0) { fail("ends too early"); }
        return got == bytes && bytes > 0;
    }

    // Reports what buffered writes did not: a full disk shows here.
    void close() {
        if (std::fclose(file_.release()) != 0) { fail("cannot be written"); }
    }

    std::FILE * get() { return file_.get(); }

  private:
    struct Closer {
        void operator()(std::FILE * file) const { std::fclose(file); }
    };

    [[noreturn]] void fail(const char * why) const { throw std::runtime_error(path_ + ": " + why); }

    std::string path_;
    std::unique_ptr<std::FILE, Closer> file_;
};

}  // namespace gpu
