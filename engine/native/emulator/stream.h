// The accelerator's queue: commands run in order, on a thread of their own, while the submitter goes on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "cpu_backend.h"
#include "event.h"
#include "frozen_graph.h"
#include "link.h"
#include "machine.h"
#include "traffic.h"

namespace emu {

class Stream {
public:
    explicit Stream(Machine & machine);
    ~Stream();  // after everything submitted has run
    Stream(const Stream &) = delete;
    Stream & operator=(const Stream &) = delete;

    // The memory on the host's side belongs to the stream until the caller synchronises.
    void submit(const Transfer & transfer);

    // The graph may be changed or freed at once; its tensors' data may not. After a graph has failed, this and every
    // later submission report the failure.
    ggml_status submit(const ggml_cgraph & graph);

    // Between two places of the device's memory.
    void submit(const Copy & copy);

    // What is submitted to `later` from now on waits for everything submitted here so far.
    void order_before(Stream & later);

    void record(Event & event);
    void wait_for(Event & event);

    // Waits for everything submitted so far, in modelled time too.
    void synchronize();

private:
    struct Launch {
        std::unique_ptr<FrozenGraph> graph;
    };
    struct Record {
        std::shared_ptr<Mark> mark;
    };
    struct WaitFor {
        std::shared_ptr<Mark> mark;
    };
    struct Command {
        Instant submitted;
        std::variant<Transfer, Copy, Launch, Record, WaitFor> work;
    };

    void push(Command command);
    void run();
    // Each carries one command out and returns its modelled end; `ready` is when it could begin.
    Instant execute(Transfer & transfer, Instant ready);
    Instant execute(Copy & copy, Instant ready);
    Instant execute(Launch & launch, Instant ready);
    Instant execute(Record & record, Instant ready);
    Instant execute(WaitFor & wait, Instant ready);

    Machine & machine_;
    CpuBackend cpu_;  // used by the stream's thread only
    std::atomic<ggml_status> status_{GGML_STATUS_SUCCESS};

    std::mutex mutex_;  // guards what follows, up to the thread
    std::condition_variable arrived_;
    std::condition_variable completed_;
    std::vector<Command> pending_;
    std::vector<std::unique_ptr<FrozenGraph>> spare_graphs_;
    uint64_t n_submitted_ = 0;
    uint64_t n_completed_ = 0;
    Instant idle_at_{};  // modelled end of the last completed command
    bool stopping_ = false;

    std::thread thread_;
};

}  // namespace emu
