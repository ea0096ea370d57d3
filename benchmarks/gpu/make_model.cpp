// make_model --out FILE [--layers 48 ...]: writes a random-weight model of the Qwen3-30B-A3B shape whose routing is
// skewed and drifts with the topic of the text. The same arguments give the same bytes on every machine.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "arguments.h"
#include "model_plan.h"

namespace gpu {

namespace {

constexpr size_t slab_bytes = 4 << 20;

struct ContextDeleter {
    void operator()(ggml_context * context) const { ggml_free(context); }
    void operator()(gguf_context * context) const { gguf_free(context); }
};

class Output {
  public:
    explicit Output(const std::string & path) : path_(path), fd_(open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0644)) {
        check(fd_ >= 0);
    }
    ~Output() { close(fd_); }
    Output(const Output &) = delete;
    Output & operator=(const Output &) = delete;

    // A disk that is too small shows here and not after minutes. Not every file system can reserve.
    void reserve(size_t bytes) { check(fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) == 0 || errno == EOPNOTSUPP); }

    void resize(size_t bytes) { check(ftruncate(fd_, static_cast<off_t>(bytes)) == 0); }

    void write(const uint8_t * data, size_t bytes, size_t offset) {
        while (bytes > 0) {
            const ssize_t done = pwrite(fd_, data, bytes, static_cast<off_t>(offset));
            check(done > 0);
            data += done;
            bytes -= static_cast<size_t>(done);
            offset += static_cast<size_t>(done);
        }
    }

  private:
    void check(bool ok) const {
        if (!ok) { throw std::runtime_error(path_ + ": " + std::strerror(errno)); }
    }

    std::string path_;
    int fd_;
};

struct Slab {
    const TensorPlan * tensor;
    int64_t first_row;
    int64_t rows;
    size_t offset;
};

// Fills and writes all slabs on all processors; the first failure ends it.
void write_slabs(const std::vector<Slab> & slabs, Output & output, unsigned threads) {
    std::atomic<size_t> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&] {
        std::vector<uint8_t> buffer;
        try {
            for (size_t i = next++; i < slabs.size(); i = next++) {
                const Slab & slab = slabs[i];
                buffer.resize(static_cast<size_t>(slab.rows) * slab.tensor->row_bytes());
                slab.tensor->fill(slab.first_row, slab.rows, buffer.data());
                output.write(buffer.data(), buffer.size(), slab.offset);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
            next = slabs.size();
        }
    };
    std::vector<std::thread> pool;
    for (unsigned i = 0; i < threads; ++i) { pool.emplace_back(work); }
    for (std::thread & thread : pool) { thread.join(); }
    if (failure) { std::rethrow_exception(failure); }
}

// Returns the bytes written.
size_t write_model(const std::string & path, const Shape & shape, unsigned threads) {
    const std::vector<TensorPlan> tensors = plan_tensors(shape);
    const std::unique_ptr<ggml_context, ContextDeleter> names(
        ggml_init({ggml_tensor_overhead() * (tensors.size() + 1), nullptr, true}));
    const std::unique_ptr<gguf_context, ContextDeleter> gguf(gguf_init_empty());
    set_metadata(gguf.get(), shape);
    for (const TensorPlan & plan : tensors) {
        const int dimensions = static_cast<int>(plan.ne.size());
        ggml_tensor * tensor = ggml_new_tensor(names.get(), plan.type, dimensions, plan.ne.data());
        ggml_set_name(tensor, plan.name.c_str());
        gguf_add_tensor(gguf.get(), tensor);
    }
    std::vector<uint8_t> header(gguf_get_meta_size(gguf.get()));
    gguf_get_meta_data(gguf.get(), header.data());

    std::vector<Slab> slabs;
    size_t end = header.size();
    for (size_t i = 0; i < tensors.size(); ++i) {
        const TensorPlan & plan = tensors[i];
        const size_t start = header.size() + gguf_get_tensor_offset(gguf.get(), static_cast<int64_t>(i));
        const auto most = static_cast<int64_t>(std::max<size_t>(1, slab_bytes / plan.row_bytes()));
        for (int64_t row = 0; row < plan.rows(); row += most) {
            const size_t offset = start + static_cast<size_t>(row) * plan.row_bytes();
            slabs.push_back({&plan, row, std::min(most, plan.rows() - row), offset});
        }
        end = std::max(end, start + static_cast<size_t>(plan.rows()) * plan.row_bytes());
    }
    const size_t alignment = gguf_get_alignment(gguf.get());
    end = (end + alignment - 1) / alignment * alignment;

    Output output(path);
    output.reserve(end);
    output.write(header.data(), header.size(), 0);
    write_slabs(slabs, output, threads);
    output.resize(end);  // the padding behind the last tensor, where nothing could be reserved
    return end;
}

void run(Arguments & arguments) {
    Shape shape;
    const std::string out = arguments.required("out");
    shape.layers = arguments.whole("layers", shape.layers, 1, 512);
    shape.embd = arguments.whole("embd", shape.embd, 32, 65536);
    shape.heads = arguments.whole("heads", shape.heads, 1, 1024);
    shape.kv_heads = arguments.whole("kv-heads", shape.kv_heads, 1, 1024);
    shape.head_dim = arguments.whole("head-dim", shape.head_dim, 32, 1024);
    shape.experts = arguments.whole("experts", shape.experts, 5, 1024);
    shape.used = arguments.whole("used", shape.used, 1, 256);
    shape.ff = arguments.whole("ff", shape.ff, 32, 65536);
    shape.vocab = arguments.whole("vocab", shape.vocab, byte_tokens + control_tokens + 1, 1 << 20);
    shape.quant = arguments.text("quant", shape.quant);
    shape.topics = arguments.whole("topics", shape.topics, 1, 1024);
    shape.top_share = arguments.real("top-share", shape.top_share, 0, 1);
    shape.drift = arguments.real("drift", shape.drift, 0, 1);
    shape.seed = static_cast<uint64_t>(arguments.whole("seed", static_cast<int>(shape.seed), 0, 1 << 30));
    const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    const int threads = arguments.whole("threads", processors, 1, 1024);
    arguments.finish();

    // A half-written model never has the name of a whole one.
    const std::string part = out + ".part";
    const size_t bytes = write_model(part, shape, static_cast<unsigned>(threads));
    if (std::rename(part.c_str(), out.c_str()) != 0) { throw std::runtime_error(out + ": " + std::strerror(errno)); }
    std::printf("%s: %.2f GiB, %d layers of %d experts\n", out.c_str(), static_cast<double>(bytes) / (1 << 30),
                shape.layers, shape.experts);
}

}  // namespace

}  // namespace gpu

int main(int argc, char ** argv) { return gpu::run_program(argc, argv, gpu::run); }
