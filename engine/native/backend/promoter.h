// Copies promoted experts into their slots on a thread of its own, so that no token waits for the link.
#pragma once

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

  private:
    struct Job {
        std::shared_ptr<Layer> layer;
        Promotion promotion;
    };

    void work();

    std::mutex mutex_;
    std::condition_variable work_to_do_;
    std::condition_variable idle_;
    std::deque<Job> jobs_;
    bool busy_ = false;
    bool stop_ = false;
    std::thread thread_;  // started by the first promotion: a cache that is off has no thread
};

}  // namespace hotcache
