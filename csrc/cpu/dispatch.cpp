#include "dispatch.h"

#include <algorithm>
#include <atomic>

#include "float_mode.h"
#include "pool.h"

namespace fusedstep {

#if defined(__x86_64__)
extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;
#else
extern const Kernels kernels_neon;
#endif

namespace {

constexpr int64_t kBytesToFork = 1 << 20;     // below, the caller's thread does it all
constexpr int64_t kBytesPerPart = 256 << 10;  // a thread that has less to do costs more than it brings
constexpr int64_t kLine = 64;

std::atomic<const Kernels*> current{nullptr};
std::atomic<int> threads{1};

// One step, as its threads share it: one index space over all slots, cut by bytes.
struct Job {
    const Kernel* kernel;
    const Slot* slots;
    size_t count;
    const Group* groups;
    int64_t bytes;
    int parts;

    // The first element of `slot`, whose bytes begin at `start`, that belongs to what follows `cut`.
    // Cuts lie on cache lines of the parameter, so that no two threads write to one.
    int64_t element(const Slot& slot, int64_t start, int64_t cut) const {
        if (cut <= start) return 0;
        int64_t width = kItemSize[slot.type];
        int64_t index = (cut - start) / kernel->traffic(1, slot.type);
        if (index >= slot.size) return slot.size;
        int64_t past_line = (reinterpret_cast<intptr_t>(slot.param) + index * width) % kLine;
        return std::clamp(index - past_line / width, int64_t(0), slot.size);
    }

    void run(int part) const {
        int64_t from = bytes * part / parts, to = bytes * (part + 1) / parts;
        FloatMode mode;
        Type type = kTypes;
        int64_t start = 0;
        for (size_t i = 0; i < count && start < to; ++i) {
            const Slot& slot = slots[i];
            int64_t end = start + kernel->traffic(slot.size, slot.type);
            if (end > from) {
                int64_t first = part == 0 ? 0 : element(slot, start, from);
                int64_t last = part == parts - 1 ? slot.size : element(slot, start, to);
                if (first < last) {
                    if (slot.type != type) {
                        type = slot.type;
                        type == kFloat64 ? mode.ieee() : mode.flush();
                    }
                    const Group& group = groups[slot.group];
                    kernel->update[type][group.general](slot, group, first, last);
                }
            }
            start = end;
        }
    }
};

}  // namespace

const std::vector<const Kernels*>& runnable_kernels() {
    static const std::vector<const Kernels*> runnable = [] {
        std::vector<const Kernels*> list;
#if defined(__x86_64__)
        list.push_back(&kernels_baseline);
        if (__builtin_cpu_supports("avx2")) {
            list.push_back(&kernels_avx2);
            if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
                list.push_back(&kernels_avx512);
        }
#else
        list.push_back(&kernels_neon);
#endif
        return list;
    }();
    return runnable;
}

const Kernels& current_kernels() {
    const Kernels* kernels = current.load(std::memory_order_acquire);
    return kernels ? *kernels : *runnable_kernels().back();
}

void use_kernels(const Kernels& kernels) {
    current.store(&kernels, std::memory_order_release);
}

int num_threads() {
    return threads.load(std::memory_order_relaxed);
}
void set_num_threads(int count) {
    threads.store(count, std::memory_order_relaxed);
}

void run_step(int rule, const Slot* slots, size_t count, const Group* groups, int64_t bytes) {
    Job job{&kernel_of(rule), slots, count, groups, bytes, 1};
    if (bytes >= kBytesToFork) job.parts = static_cast<int>(std::min<int64_t>(num_threads(), bytes / kBytesPerPart));
    if (job.parts <= 1) return job.run(0);
    run_parallel(job.parts, [](void* self, int part) { static_cast<const Job*>(self)->run(part); }, &job);
}

}  // namespace fusedstep
