#include "engines/cpu/dispatch.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "element/float_mode.h"
#include "element/norm.h"
#include "engines/cpu/pool.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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
constexpr int64_t kZeroChunk = 2048;  // elements: a gradient is zeroed while it still is in the nearest cache

std::atomic<const Kernels*> current{nullptr};
std::atomic<int> threads{1};

#if defined(__x86_64__)
bool has_f16c() {  // of which __builtin_cpu_supports knows nothing in Clang 14
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

void set_mode(FloatMode& mode, Type type) {
    type == kFloat64 ? mode.ieee() : mode.flush();
}

// How many threads share work that touches so many bytes.
int parts_of(int64_t bytes) {
    if (bytes < kBytesToFork) return 1;
    return static_cast<int>(std::min<int64_t>(num_threads(), bytes / kBytesPerPart));
}

template <class Job>
void run(const Job& job) {
    if (job.parts <= 1) return job.run(0);
    run_parallel(
        job.parts, [](void* self, int part) { static_cast<const Job*>(self)->run(part); }, const_cast<Job*>(&job));
}

// One step, as its threads share it: one index space over all slots, cut by bytes.
struct Job {
    const Kernel* kernel;
    const Slot* slots;
    size_t count;
    const Derived* groups;
    int64_t bytes;
    int parts;

    // The first element of `slot`, whose bytes begin at `start`, that belongs to what follows `cut`.
    // Cuts lie on cache lines of the parameter, so that no two threads write to one.
    int64_t element(const Slot& slot, int64_t start, int64_t cut) const {
        if (cut <= start) return 0;
        int64_t width = kItemSize[slot.types.param];
        int64_t index = (cut - start) / slot.traffic;
        if (index >= slot.size) return slot.size;
        int64_t past_line = (reinterpret_cast<intptr_t>(slot.arrays[kParam]) + index * width) % kLine;
        return std::clamp(index - past_line / width, int64_t(0), slot.size);
    }

    void run(int part) const {
        int64_t from = bytes * part / parts, to = bytes * (part + 1) / parts;
        FloatMode mode;
        Type type = kTypes;  // of the computation
        int64_t start = 0;
        for (size_t i = 0; i < count && start < to; ++i) {
            const Slot& slot = slots[i];
            int64_t end = start + slot.size * slot.traffic;
            if (slot.size && end > from) {
                int64_t first = part == 0 ? 0 : element(slot, start, from);
                int64_t last = part == parts - 1 ? slot.size : element(slot, start, to);
                if (first < last) {
                    if (slot.types.param != type) {
                        type = slot.types.param;
                        set_mode(mode, type);
                    }
                    update(slot, first, last);
                }
            }
            start = end;
        }
    }

    void update(const Slot& slot, int64_t first, int64_t last) const {
        const Derived& group = groups[slot.group];
        Variant variant = group.variant == kPlain && slot.scale != 1 ? kDecayed : group.variant;
        int loop = group.stochastic && slot.loop >= kPure ? kGeneric : slot.loop;
        auto run = kernel->update[loop][variant];
        if (!group.zero_grad) return run(slot, group, first, last);
        for (int64_t next; first < last; first = next) {
            next = std::min(first + kZeroChunk, last);
            run(slot, group, first, next);
            zero_grad(slot, first, next);
        }
    }
};

// The sums of squares of all slots: one index space over their blocks.
struct NormJob {
    const Kernels* kernels;
    const Slot* slots;
    size_t count;
    double* sums;  // of all blocks
    int64_t blocks;
    int parts;

    void run(int part) const {
        int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
        FloatMode mode;
        int64_t start = 0;
        for (size_t i = 0; i < count && start < to; ++i) {
            const Slot& slot = slots[i];
            int64_t end = start + blocks_of(slot.size);
            int64_t first = std::max(from, start), last = std::min(to, end);
            if (first < last) {
                set_mode(mode, slot.types.grad);
                kernels->square[slot.types.grad](slot.arrays[kGrad], slot.size, first - start, last - start,
                                                 sums + start);
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
        if (__builtin_cpu_supports("avx2") && has_f16c()) {
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

void run_step(int rule, const Slot* slots, size_t count, const Derived* groups, int64_t bytes) {
    run(Job{&kernel_of(rule), slots, count, groups, bytes, parts_of(bytes)});
}

void sum_squares(const Slot* slots, size_t count, double* sums) {
    int64_t blocks = 0, bytes = 0;
    for (size_t i = 0; i < count; ++i) {
        blocks += blocks_of(slots[i].size);
        bytes += slots[i].size * kItemSize[slots[i].types.grad];
    }
    std::vector<double> block_sums(blocks);
    run(NormJob{&current_kernels(), slots, count, block_sums.data(), blocks, parts_of(bytes)});
    FloatMode mode;
    mode.ieee();
    double* next = block_sums.data();
    for (size_t i = 0; i < count; ++i) {
        sums[i] = total(next, blocks_of(slots[i].size));
        next += blocks_of(slots[i].size);
    }
}

double add_up(double* sums, size_t count) {
    FloatMode mode;
    mode.ieee();
    return total(sums, static_cast<int64_t>(count));
}

void zero_grad(const Slot& slot, int64_t begin, int64_t end) {
    int64_t width = kItemSize[slot.types.grad];
    memset(static_cast<char*>(slot.arrays[kGrad]) + begin * width, 0, (end - begin) * width);
}

bool is_finite(const Slot& slot, double sum) {
    if (std::isfinite(sum)) return true;
    if (slot.types.grad != kFloat64) return false;
    auto* g = static_cast<const double*>(slot.arrays[kGrad]);  // whose squares may overflow
    return std::all_of(g, g + slot.size, [](double x) { return std::isfinite(x); });
}

}  // namespace fusedstep
