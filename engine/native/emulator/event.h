// A mark in a stream that other streams and the host can wait for, with CUDA's meaning: waiting is for the last record
// made before the wait, and an event never recorded has already happened.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>

#include "clock.h"

namespace emu {

// One record of an event: a stream that gets there reaches it, once.
class Mark {
public:
    void reach(Instant at) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            reached_at_ = at;
        }
        reached_.notify_all();
    }

    // Blocks until the mark was reached and returns when, in modelled time.
    Instant wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        reached_.wait(lock, [&] { return reached_at_.has_value(); });
        return *reached_at_;
    }

private:
    std::mutex mutex_;
    std::condition_variable reached_;
    std::optional<Instant> reached_at_;
};

class Event {
public:
    // Whoever waits from now on waits for the mark returned.
    std::shared_ptr<Mark> record() {
        const std::lock_guard<std::mutex> lock(mutex_);
        last_ = std::make_shared<Mark>();
        return last_;
    }

    // Null before the first record.
    std::shared_ptr<Mark> last() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_;
    }

private:
    std::mutex mutex_;
    std::shared_ptr<Mark> last_;
};

}  // namespace emu
