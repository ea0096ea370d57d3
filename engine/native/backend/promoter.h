// Copies promoted experts into their slots on a thread of its own, so that no token waits for the link.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "layer.h"

namespace hotcache {

class Promoter {
  public:
    Promoter() = default;
    ~Promoter();
    Promoter(const Promoter &) = delete;
    Promoter & operator=(const Promoter &) = delete;

    void enqueue(const std::shared_ptr<Layer> & layer, const std::vector<Promotion> & promotions);
    // Returns when every promotion asked for so far has arrived.
    void drain();
    // Drops what has not begun, its slots empty again, and returns when what had begun has arrived.
    void cancel();

    // Bytes that wait for the link or are on it.
    int64_t in_flight_bytes() const { return in_flight_bytes_.load(std::memory_order_relaxed); }

    // While somebody is urgent, no further piece is put on the link.
    class Urgent {
      public:
        explicit Urgent(Promoter & promoter) : promoter_(promoter) { ++promoter_.urgent_; }
        ~Urgent() { --promoter_.urgent_; }
        Urgent(const Urgent &) = delete;
        Urgent & operator=(const Urgent &) = delete;

      private:
        Promoter & promoter_;
    };

  private:
    struct Job {
        std::shared_ptr<Layer> layer;
        Promotion promotion;
    };

    void work();
    void give_way() const;

    std::mutex mutex_;
    std::condition_variable work_to_do_;
    std::condition_variable idle_;
    std::deque<Job> jobs_;
    bool busy_ = false;
    bool stop_ = false;
    std::atomic<int> urgent_{0};
    std::atomic<int64_t> in_flight_bytes_{0};
    std::thread thread_;  // started by the first promotion: a cache that is off has no thread
};

}  // namespace hotcache
