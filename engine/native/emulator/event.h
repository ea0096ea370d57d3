// A mark in a stream that other streams and the host can wait for, with CUDA's meaning: waiting is for the last record
// made before the wait, and an event never recorded has already happened.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "clock.h"

namespace emu {

class Event {
public:
    // A stream takes a ticket when the record is submitted and completes it when it gets there.
    uint64_t record() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return ++last_recorded_;
    }

    void complete(uint64_t ticket, Instant at) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            last_completed_ = std::max(last_completed_, ticket);
            completed_at_ = std::max(completed_at_, at);
        }
        completed_.notify_all();
    }

    uint64_t last_recorded() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_recorded_;
    }

    // Blocks until the record was reached and returns when, in modelled time.
    Instant wait(uint64_t ticket) {
        std::unique_lock<std::mutex> lock(mutex_);
        completed_.wait(lock, [&] { return last_completed_ >= ticket; });
        return completed_at_;
    }

private:
    std::mutex mutex_;
    std::condition_variable completed_;
    uint64_t last_recorded_ = 0;
    uint64_t last_completed_ = 0;
    Instant completed_at_{};
};

}  // namespace emu
