#include "stream.h"

#include <utility>

namespace emu {

Stream::Stream(Machine & machine) : machine_(machine), cpu_(machine.settings().threads), thread_([this] { run(); }) {}

Stream::~Stream() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    arrived_.notify_one();
    thread_.join();
}

void Stream::submit(const Transfer & transfer) { push({Clock::now(), transfer}); }

ggml_status Stream::submit(const ggml_cgraph & graph) {
    const Instant submitted = Clock::now();
    std::unique_ptr<FrozenGraph> frozen;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!spare_graphs_.empty()) {
            frozen = std::move(spare_graphs_.back());
            spare_graphs_.pop_back();
        }
    }
    if (frozen == nullptr) { frozen = std::make_unique<FrozenGraph>(); }
    frozen->freeze(graph);
    push({submitted, Launch{std::move(frozen)}});
    return status_.load();
}

void Stream::submit(const Copy & copy) { push({Clock::now(), copy}); }

void Stream::order_before(Stream & later) {
    const auto mark = std::make_shared<Mark>();
    const Instant submitted = Clock::now();
    push({submitted, Record{mark}});
    later.push({submitted, WaitFor{mark}});
}

void Stream::record(Event & event) { push({Clock::now(), Record{event.record()}}); }

void Stream::wait_for(Event & event) {
    if (const auto mark = event.last()) { push({Clock::now(), WaitFor{mark}}); }
}

void Stream::synchronize() {
    Instant idle_at;
    {
        std::unique_lock<std::mutex> lock(mutex_);
        const uint64_t last = n_submitted_;
        completed_.wait(lock, [&] { return n_completed_ >= last; });
        idle_at = idle_at_;
    }
    machine_.hold_until(idle_at);
}

void Stream::push(Command command) {
    bool was_empty = false;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        was_empty = pending_.empty();
        pending_.push_back(std::move(command));
        ++n_submitted_;
    }
    if (was_empty) { arrived_.notify_one(); }
}

void Stream::run() {
    std::vector<Command> batch;
    Instant idle_at{};
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        arrived_.wait(lock, [&] { return stopping_ || !pending_.empty(); });
        if (pending_.empty()) { return; }
        batch.swap(pending_);
        lock.unlock();
        for (Command & command : batch) {
            const Instant ready = std::max(command.submitted, idle_at);
            idle_at = std::visit([&](auto & work) { return execute(work, ready); }, command.work);
            doze_until(idle_at - run_ahead);
            lock.lock();
            if (auto * launch = std::get_if<Launch>(&command.work)) {
                spare_graphs_.push_back(std::move(launch->graph));
            }
            ++n_completed_;
            idle_at_ = idle_at;
            lock.unlock();
            completed_.notify_all();
        }
        batch.clear();
        lock.lock();
    }
}

Instant Stream::execute(Transfer & transfer, Instant ready) { return carry(machine_, ready, transfer); }

Instant Stream::execute(Copy & copy, Instant ready) { return duplicate(machine_, ready, copy); }

Instant Stream::execute(Launch & launch, Instant ready) {
    Traffic traffic{};
    const ggml_status status = compute_counting(cpu_, launch.graph->graph(), traffic);
    if (status != GGML_STATUS_SUCCESS) { status_ = status; }
    return machine_.finish_device_work(machine_.device_work(ready, traffic.launches, traffic.bytes));
}

Instant Stream::execute(Record & record, Instant ready) {
    doze_until(ready - run_ahead);
    record.mark->reach(ready);
    return ready;
}

Instant Stream::execute(WaitFor & wait, Instant ready) { return std::max(ready, wait.mark->wait()); }

}  // namespace emu
