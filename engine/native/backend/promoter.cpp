#include "promoter.h"

#include <algorithm>
#include <chrono>

namespace hotcache {

namespace {

using Clock = std::chrono::steady_clock;

// Whoever needs the link waits for one piece at most. Pieces grow or shrink until one takes this long.
constexpr double piece_s = 40e-6;
constexpr size_t smallest_piece = 4 << 10;
constexpr size_t largest_piece = 4 << 20;

}  // namespace

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
        if (!thread_.joinable()) { thread_ = std::thread([this] { work(); }); }
        for (const Promotion & p : promotions) { jobs_.push_back({layer, p}); }
        in_flight_bytes_ += static_cast<int64_t>(promotions.size()) * layer->expert_bytes();
    }
    work_to_do_.notify_one();
}

void Promoter::drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return jobs_.empty() && !busy_; });
}

void Promoter::cancel() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (const Job & job : jobs_) {
        const std::lock_guard<std::mutex> layer_lock(job.layer->mutex);
        job.layer->table.cancel(job.promotion.slot);
        in_flight_bytes_ -= job.layer->expert_bytes();
    }
    jobs_.clear();
    idle_.wait(lock, [this] { return !busy_; });
}

// Asleep, not in a loop that would take a core from the computation it makes way for.
void Promoter::give_way() const {
    while (urgent_.load(std::memory_order_relaxed) > 0) { std::this_thread::sleep_for(std::chrono::microseconds(20)); }
}

void Promoter::work() {
    size_t piece_bytes = 256 << 10;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        work_to_do_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
        if (stop_) { return; }
        const Job job = std::move(jobs_.front());
        jobs_.pop_front();
        busy_ = true;
        lock.unlock();

        const auto start = Clock::now();
        const int64_t bytes = job.layer->copy(job.promotion, piece_bytes, [this] { give_way(); });
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        const double bytes_in_time = static_cast<double>(bytes) * piece_s / std::max(seconds, 1e-9);
        piece_bytes = std::clamp(static_cast<size_t>(bytes_in_time), smallest_piece, largest_piece);
        {
            const std::lock_guard<std::mutex> layer_lock(job.layer->mutex);
            job.layer->table.arrived(job.promotion.slot);
            job.layer->counters.promotions += 1;
            job.layer->counters.bytes_moved += bytes;
        }
        in_flight_bytes_ -= bytes;

        lock.lock();
        busy_ = false;
        if (jobs_.empty()) { idle_.notify_all(); }
    }
}

}  // namespace hotcache
