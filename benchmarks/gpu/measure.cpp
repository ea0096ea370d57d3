// measure --model FILE --device NAME --out JSON ...: loads a model once and times prompt processing and generation over
// a fixed, teacher-forced trace. Raw samples, memory and the cache's counters go to --out, logits to --logits.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "arguments.h"
#include "files.h"
#include "hotcache.h"
#include "session.h"
#include "trace.h"

namespace gpu {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Plan {
    int prompt_tokens;
    int prompts;       // timed; one more comes first
    int warmup_tokens;
    int timed_tokens;
    int positions;     // whose logits are kept, after the timed tokens
    int stay;
    uint64_t seed;
    std::string logits_path;

    int reply_tokens() const { return warmup_tokens + timed_tokens + positions; }
};

struct CacheTotals {
    size_t layers = 0;
    int fewest_slots = 0, most_slots = 0;
    hotcache_layer sum{};  // of what can be summed
};

constexpr std::pair<const char *, int64_t hotcache_layer::*> counters[] = {
    {"slot_bytes", &hotcache_layer::slot_bytes},         {"hits", &hotcache_layer::hits},
    {"misses", &hotcache_layer::misses},                 {"promotions", &hotcache_layer::promotions},
    {"bytes_moved", &hotcache_layer::bytes_moved},       {"steps", &hotcache_layer::steps},
    {"device_steps", &hotcache_layer::device_steps},     {"plain_steps", &hotcache_layer::plain_steps},
    {"ahead_steps", &hotcache_layer::ahead_steps},       {"whole_steps", &hotcache_layer::whole_steps},
    {"repacked_bytes", &hotcache_layer::repacked_bytes},
};

// The plugin that this process has loaded, reached through its C interface.
class CacheCounters {
  public:
    explicit CacheCounters(const std::string & path) {
        if (path.empty()) { return; }
        library_.reset(dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD));
        if (library_ == nullptr) { throw std::runtime_error(path + " is not loaded"); }
        layers_ = reinterpret_cast<decltype(&hotcache_layers)>(dlsym(library_.get(), "hotcache_layers"));
        reset_ = reinterpret_cast<decltype(&hotcache_reset_counters)>(dlsym(library_.get(), "hotcache_reset_counters"));
        if (layers_ == nullptr || reset_ == nullptr) { throw std::runtime_error(path + ": not the hot-expert cache"); }
    }

    void reset() const {
        if (reset_ != nullptr) { reset_(); }
    }

    CacheTotals totals() const {
        CacheTotals totals;
        if (layers_ == nullptr) { return totals; }
        std::vector<hotcache_layer> layers(layers_(nullptr, 0));
        layers.resize(std::min(layers.size(), layers_(layers.data(), layers.size())));
        totals.layers = layers.size();
        for (const hotcache_layer & layer : layers) {
            const bool is_first = &layer == &layers.front();
            totals.fewest_slots = is_first ? layer.n_slots : std::min(totals.fewest_slots, layer.n_slots);
            totals.most_slots = std::max(totals.most_slots, layer.n_slots);
            for (const auto & [name, counter] : counters) { totals.sum.*counter += layer.*counter; }
        }
        return totals;
    }

  private:
    struct Closer {
        void operator()(void * handle) const { dlclose(handle); }
    };
    std::unique_ptr<void, Closer> library_;
    decltype(&hotcache_layers) layers_ = nullptr;
    decltype(&hotcache_reset_counters) reset_ = nullptr;
};

struct Samples {
    double load_s = 0;
    std::vector<double> prompt_s;
    std::vector<double> warmup_s;  // a token
    std::vector<double> reply_s;   // a token
    CacheTotals reply;             // over the timed tokens
};

void require_numbers(const float * logits, int n) {
    for (int i = 0; i < n; ++i) {
        if (!std::isfinite(logits[i])) { throw std::runtime_error("a logit is not a number"); }
    }
}

Samples take_samples(Session & session, const Plan & plan, const Trace & trace, const CacheCounters & cache) {
    Samples samples;
    const int32_t * next = trace.tokens.data();
    for (int i = 0; i <= plan.prompts && plan.prompts > 0; ++i, next += plan.prompt_tokens) {
        session.forget();
        const auto start = Clock::now();
        session.decode(next, plan.prompt_tokens);
        if (i > 0) { samples.prompt_s.push_back(seconds_since(start)); }
    }
    session.forget();
    const auto generate = [&](int n, std::vector<double> & times) {
        for (int i = 0; i < n; ++i, ++next) {
            const auto start = Clock::now();
            session.decode(next, 1);
            times.push_back(seconds_since(start));
        }
    };
    generate(plan.warmup_tokens, samples.warmup_s);
    cache.reset();
    generate(plan.timed_tokens, samples.reply_s);
    samples.reply = cache.totals();
    require_numbers(session.logits(), session.n_vocab());
    if (plan.logits_path.empty()) { return samples; }
    File file(plan.logits_path, "wb");
    const int32_t n_vocab = session.n_vocab();
    file.write(&n_vocab, sizeof(n_vocab));
    for (int i = 0; i < plan.positions; ++i, ++next) {
        session.decode(next, 1);
        require_numbers(session.logits(), n_vocab);
        file.write(session.logits(), sizeof(float) * static_cast<size_t>(n_vocab));
    }
    file.close();
    return samples;
}

// Names and descriptions of devices and files, none of which hold control characters.
std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') { out += '\\'; }
        out += c;
    }
    return out + '"';
}

void write_list(std::FILE * out, const char * name, const std::vector<double> & values) {
    std::fprintf(out, ",\n \"%s\": [", name);
    for (size_t i = 0; i < values.size(); ++i) { std::fprintf(out, "%s%.7g", i == 0 ? "" : ", ", values[i]); }
    std::fprintf(out, "]");
}

void write_report(const std::string & path, const Placement & placement, const Plan & plan, const ModelFacts & facts,
                  const Session & session, const Samples & samples) {
    File file(path, "w");
    std::FILE * out = file.get();
    const CacheTotals & c = samples.reply;
    const auto before = static_cast<long long>(session.used_before_bytes());
    const auto used = static_cast<long long>(session.device_used_bytes()) - before;
    std::fprintf(out, "{\n \"device\": %s,\n \"description\": %s,\n", quoted(placement.device).c_str(),
                 quoted(session.device_description()).c_str());
    std::fprintf(out, " \"layers\": %d, \"experts\": %d, \"used\": %d, \"expert_layers\": %d,\n", facts.layers,
                 facts.experts, facts.used, facts.expert_layers);
    std::fprintf(out, " \"expert_bytes\": %lld, \"expert_layer_bytes\": %lld,\n",
                 static_cast<long long>(facts.expert_bytes), static_cast<long long>(facts.expert_layer_bytes));
    std::fprintf(out, " \"vram_bytes\": %lld, \"vram_before_bytes\": %lld, \"vram_total_bytes\": %zu,\n", used, before,
                 session.device_total_bytes());
    std::fprintf(out, " \"load_s\": %.3f, \"prompt_tokens\": %d", samples.load_s, plan.prompt_tokens);
    write_list(out, "prompt_s", samples.prompt_s);
    write_list(out, "warmup_s", samples.warmup_s);
    write_list(out, "reply_s", samples.reply_s);
    std::fprintf(out, ",\n \"cache\": ");
    if (placement.plugin.empty()) {
        std::fprintf(out, "null");
    } else {
        std::fprintf(out, "{\"layers\": %zu, \"fewest_slots\": %d, \"most_slots\": %d", c.layers, c.fewest_slots,
                     c.most_slots);
        for (const auto & [name, counter] : counters) {
            std::fprintf(out, ", \"%s\": %lld", name, static_cast<long long>(c.sum.*counter));
        }
        std::fprintf(out, "}");
    }
    std::fprintf(out, "\n}\n");
    file.close();
}

void run(Arguments & arguments) {
    Placement placement = placement_from(arguments);
    Plan plan{};
    const std::string out = arguments.required("out");
    plan.prompt_tokens = arguments.whole("prompt-tokens", 512, 1, 1 << 16);
    plan.prompts = arguments.whole("prompts", 3, 0, 100);
    plan.warmup_tokens = arguments.whole("warmup", 256, 0, 1 << 16);
    plan.timed_tokens = arguments.whole("tokens", 256, 1, 1 << 16);
    plan.positions = arguments.whole("positions", 64, 1, 1 << 16);
    plan.stay = arguments.whole("stay", 128, 1, 1 << 16);
    plan.seed = static_cast<uint64_t>(arguments.whole("seed", 1, 0, 1 << 30));
    plan.logits_path = arguments.text("logits");
    arguments.finish();

    const ModelFacts facts = read_facts(placement.model);
    placement.cpu_moe = std::min(placement.cpu_moe, facts.layers);
    placement.n_batch = std::max(plan.prompt_tokens, 32);
    placement.n_ctx = std::max(plan.prompt_tokens, plan.reply_tokens());
    const auto start = Clock::now();
    Session session(placement, nullptr, nullptr);
    const double load_s = seconds_since(start);
    const int prompt_part = plan.prompts > 0 ? (plan.prompts + 1) * plan.prompt_tokens : 0;
    const int tokens = prompt_part + plan.reply_tokens();
    const Trace trace = make_trace(tokens, session.n_vocab(), facts.topics, plan.stay, plan.seed);
    const CacheCounters cache(placement.plugin);
    Samples samples = take_samples(session, plan, trace, cache);
    samples.load_s = load_s;
    write_report(out, placement, plan, facts, session, samples);
}

}  // namespace

}  // namespace gpu

int main(int argc, char ** argv) { return gpu::run_program(argc, argv, gpu::run); }
