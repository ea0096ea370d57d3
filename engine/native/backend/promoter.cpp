#include "promoter.h"

namespace hotcache {

Promoter::~Promoter() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    work_to_do_.notify_all();
    if (thread_.joinable()) { thread_.join(); }
}

void Promoter::enqueue(const std::shared_ptr<Layer> & layer, const std::vector<Promotion> & promotions) {
    if (promotions.empty()) { return; }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const Promotion & p : promotions) { jobs_.push_back({layer, p}); }
        if (!thread_.joinable()) { thread_ = std::thread([this] { work(); }); }
    }
    work_to_do_.notify_one();
}

void Promoter::drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return jobs_.empty() && !busy_; });
}

void Promoter::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        work_to_do_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
        if (stop_) { return; }
        const Job job = std::move(jobs_.front());
        jobs_.pop_front();
        busy_ = true;
        lock.unlock();

        const int64_t bytes = job.layer->copy(job.promotion);
        {
            const std::lock_guard<std::mutex> layer_lock(job.layer->mutex);
            job.layer->table.arrived(job.promotion.slot);
            job.layer->counters.promotions += 1;
            job.layer->counters.bytes_moved += bytes;
        }

        lock.lock();
        busy_ = false;
        if (jobs_.empty()) { idle_.notify_all(); }
    }
}

}  // namespace hotcache
