#include "engines/cpu/dispatch.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string_view>

#include "element/float_mode.h"
#include "element/norm.h"
#include "engines/cpu/pool.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fusedstep {

#if defined(__x86_64__)
extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512, kernels_avx512_bf16;
#else
extern const Kernels kernels_neon;
#endif

namespace {

constexpr int64_t kBytesToFork = 1 << 20;       // a smaller step is made by the caller's thread alone
constexpr int64_t kBytesPerThread = 256 << 10;  // a thread with less to do costs more time than it saves
constexpr int64_t kBytesPerPart = 128 << 10;
constexpr int kMostPartsOfThread = 8, kMostThreads = 1024;
constexpr int64_t kZeroChunk = 2048;  // elements after which a gradient is zeroed, while it is in the nearest cache

std::atomic<const Kernels*> current{nullptr};
std::atomic<int> threads{1};

#if defined(__x86_64__)
bool has_f16c() {  // __builtin_cpu_supports does not know F16C in Clang 14
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

void set_mode(FloatMode& mode, Type type) {
    type == kFloat64 ? mode.ieee() : mode.flush();
}

// How work is shared: each thread has as many parts, which follow each other.
struct Shares {
    int threads, of_thread;

    int parts() const { return threads * of_thread; }
};

// How threads share work that touches so many bytes.
Shares shares_of(int64_t bytes) {
    const auto threads =
        static_cast<int>(std::min<int64_t>(std::min(num_threads(), kMostThreads), bytes / kBytesPerThread));
    if (bytes < kBytesToFork || threads <= 1) return {1, 1};
    return {threads, static_cast<int>(std::clamp<int64_t>(bytes / threads / kBytesPerPart, 1, kMostPartsOfThread))};
}

// Make all parts of a job. A thread makes its own parts, always the same ones, which may still be in its cache, and
// then those that another thread has not begun: one that shares its core with other work keeps nobody waiting for long.
template <class Job>
void run(const Job& job) {
    const Shares shares = job.shares;
    if (shares.threads == 1) return job.run(0, 0);
    struct Shared {
        const Job& job;
        std::atomic<int> begun[kMostThreads] = {};  // how many parts of each thread
    } shared{job};
    const auto work = [](void* self, int thread) {
        auto& [job, begun] = *static_cast<Shared*>(self);
        const auto [threads, of_thread] = job.shares;
        for (int i = 0; i < threads; ++i) {
            const int owner = (thread + i) % threads;
            for (int part; (part = begun[owner].fetch_add(1, std::memory_order_relaxed)) < of_thread;)
                job.run(owner * of_thread + part, thread);
        }
    };
    run_parallel(shares.threads, work, &shared);
}

// Whether a gradient is the sum of two arrays of floats, for which there are loops that read both.
bool is_pair(const Slot& slot) {
    return slot.summand_count == 2 && slot.summands[0].type == kFloat32 && slot.summands[1].type == kFloat32 &&
           slot.types.param != kFloat64;
}
constexpr int kFloats32 = loop_of({kFloat32, kFloat32, kFloat32});

void collect(const Kernels& kernels, const Gathering& what, void* tile) {
    const Slot& slot = *what.slot;
    const bool is_double = slot.types.param == kFloat64;
    if (!slot.summands) return kernels.gather[is_double][slot.types.grad](what, tile);
    const int64_t begin = what.box.first;  // of a run: the arrays lie like the parameter
    void* const out = static_cast<char*>(tile) - begin * kItemSize[computed_in(slot.types.param)];
    kernels.sum[is_double]({slot.summands, slot.summand_count, out}, begin, begin + what.box.count);
}

// Write the elements [begin, end) of a gradient to memory, in the type of the computation.
void read_gradient(const Slot& slot, int64_t begin, int64_t end, void* to) {
    const int64_t width = kItemSize[computed_in(slot.types.param)];
    each_box(slot, begin, end, [&](int row_axis, const Box& box) {
        collect(current_kernels(), {&slot, row_axis, box, box.pitch},
                static_cast<char*>(to) + (box.first - begin) * width);
    });
}

// One step, as its threads share it: the elements of all tensors in a row, cut by bytes.
struct Step {
    const Kernels& kernels;
    const Kernel& kernel;
    const Routine* routine;  // of a rule that was made at run time, or null
    std::span<const Task> tasks;
    int64_t bytes;
    Shares shares;
    const Tiles* tiles;

    // The first element after a cut of a tensor whose bytes begin at `start`. Cuts lie on boundaries of cache lines of
    // the parameter, so that no two threads write to one line; or of blocks, where the update is measured.
    static int64_t element(const Task& task, int64_t start, int64_t cut) {
        if (cut <= start) return 0;
        const Slot& slot = *task.slot;
        int64_t width = kItemSize[slot.types.param];
        int64_t index = (cut - start) / task.traffic;
        if (index >= slot.size) return slot.size;
        if (task.sums) return index / kBlock * kBlock;
        int64_t past_line = (reinterpret_cast<intptr_t>(slot.arrays[kParam]) + index * width) % kLine;
        return std::clamp(index - past_line / width, int64_t(0), slot.size);
    }

    void run(int part, int thread) const {
        const int parts = shares.parts();
        int64_t from = bytes * part / parts, to = bytes * (part + 1) / parts;
        FloatMode mode;
        Type type = kTypes;  // the type that the mode was set for
        auto task = std::ranges::upper_bound(tasks, from, {}, &Task::start);
        if (task != tasks.begin()) --task;
        for (; task != tasks.end() && task->start < to; ++task) {
            const Slot& slot = *task->slot;
            int64_t first = part == 0 ? 0 : element(*task, task->start, from);
            int64_t last = part == parts - 1 ? slot.size : element(*task, task->start, to);
            if (first >= last) continue;
            if (slot.types.param != type) {
                type = slot.types.param;
                set_mode(mode, type);
            }
            update(*task, first, last, thread);
        }
    }

    void update(Task task, int64_t first, int64_t last, int thread) const {
        task.routine = routine;
        if (!task.slot->has_grad) return kernels.average(task, first, last);
        if (task.sums) return measure(task, first, last);
        const Derived& derived = *task.derived;
        Variant variant = derived.variant == kPlain && task.scale != 1 ? kDecayed : derived.variant;
        const bool converts = task.loop == kGeneric || !converts_nothing(kCompiled[task.loop]);
        const bool by_chance = derived.stochastic && converts;
        if (is_pair(*task.slot) && task.loop == kFloats32 && variant <= kDecayed && kernel.pair[variant])
            return kernel.pair[variant](task, first, last);
        auto run = kernel.update[by_chance ? kGeneric : task.loop][variant];
        if (is_gathered(*task.slot)) return gather(task, first, last, tiles->of(thread), run);
        if (!derived.zero_grad) return run(task, first, last);
        for (int64_t next; first < last; first = next) {
            next = std::min(first + kZeroChunk, last);
            run(task, first, next);
            zero_grad(*task.slot, first, next);
        }
    }

    // Update whole blocks, and add up the squares of what is subtracted from the parameter in each.
    void measure(const Task& task, int64_t first, int64_t last) const {
        const Type type = computed_in(task.slot->types.param);
        alignas(64) double updates[kBlock], grads[kBlock];
        Slot slot = *task.slot;
        Task block = task;
        block.slot = &slot;
        block.updates = updates;
        slot.types.grad = is_gathered(*task.slot) ? type : slot.types.grad;
        for (int64_t begin = first, end; begin < last; begin = end) {
            end = std::min(begin + kBlock, last);
            if (is_gathered(*task.slot)) {
                read_gradient(*task.slot, begin, end, grads);
                slot.arrays[kGrad] = reinterpret_cast<char*>(grads) - begin * kItemSize[type];
            }
            (type == kFloat64 ? kernel.measured : kernel.update[kGeneric][kAveraged])(block, begin, end);
            kernels.square[type](updates, end - begin, 0, 1, task.sums + begin / kBlock);
            if (task.derived->zero_grad) zero_grad(*task.slot, begin, end);
        }
    }

    // Update elements whose gradient is first collected in a tile, box by box.
    template <class Run>
    void gather(const Task& task, int64_t first, int64_t last, char* tile, Run run) const {
        Slot slot = *task.slot;
        Task with_tile = task;
        with_tile.slot = &slot;
        slot.types.grad = computed_in(slot.types.param);
        const int64_t width = kItemSize[slot.types.grad];
        each_box(*task.slot, first, last, [&](int row_axis, const Box& box) {
            const int64_t pitch = box.is_run() ? box.pitch : box.count + kPadding;
            collect(kernels, {task.slot, row_axis, box, pitch}, tile);
            const int64_t runs = box.is_run() ? 1 : box.rows, count = box.is_run() ? box.rows * box.count : box.count;
            for (int64_t r = 0; r < runs; ++r) {
                const int64_t begin = box.first + r * box.pitch;
                // The loops add the bytes of `begin` to the address that they find here.
                slot.arrays[kGrad] = tile + (r * pitch - begin) * width;
                run(with_tile, begin, begin + count);
                if (task.derived->zero_grad) zero_grad(*task.slot, begin, begin + count);
            }
        });
    }
};

// The sums of squares of all gradients, as threads share them: the blocks of all gradients in a row.
struct Squares {
    const Kernels& kernels;
    std::span<const Slot* const> slots;
    std::span<const int64_t> starts;  // the first block of each slot
    double* sums;                     // one for each block
    char* batches;                    // room for a batch of blocks in each thread, where a gradient is collected
    int64_t batch_bytes;
    int64_t blocks;
    Shares shares;

    void run(int part, int thread) const {
        const int parts = shares.parts();
        int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
        FloatMode mode;
        size_t i = std::ranges::upper_bound(starts, from) - starts.begin();
        for (i -= i > 0; i < slots.size() && starts[i] < to; ++i) {
            const Slot& slot = *slots[i];
            const int64_t start = starts[i], end = start + blocks_of(slot.size);
            const int64_t first = std::max(from, start), last = std::min(to, end);
            if (first >= last) continue;
            if (is_pair(slot)) {
                set_mode(mode, kFloat32);
                const auto array = [&](int i) { return static_cast<const float*>(slot.summands[i].data); };
                kernels.square_pair(array(0), array(1), slot.size, first - start, last - start, sums + start);
            } else if (is_gathered(slot)) {
                set_mode(mode, slot.types.param);
                gather(slot, first - start, last - start, sums + start, batches + thread * batch_bytes);
            } else {
                const Type type = slot.types.grad;
                set_mode(mode, type);
                kernels.square[type](slot.arrays[kGrad], slot.size, first - start, last - start, sums + start);
            }
        }
    }

    // The sums of squares of the blocks [begin, end) of a gradient that is collected, batch by batch.
    void gather(const Slot& slot, int64_t begin, int64_t end, double* sums_of_slot, char* batch) const {
        const Type type = computed_in(slot.types.param);
        const int64_t blocks_of_batch = (slot.grad_axes ? kTileBytes / kItemSize[type] : kRun) / kBlock;
        for (int64_t b = begin; b < end; b += blocks_of_batch) {
            const int64_t first = b * kBlock, last = std::min(std::min(b + blocks_of_batch, end) * kBlock, slot.size);
            read_gradient(slot, first, last, batch);
            kernels.square[type](batch, last - first, 0, blocks_of(last - first), sums_of_slot + b);
        }
    }
};

// A sum of arrays, as threads share it.
struct Sum {
    void (*sum)(const Summation& what, int64_t begin, int64_t end);
    const Summation& what;
    int64_t size;
    Type type;
    Shares shares;

    // Cuts lie on boundaries of cache lines of the sum, so that no two threads write to one line.
    int64_t cut(int part) const {
        if (part == shares.parts()) return size;
        const int64_t width = kItemSize[type], index = size / shares.parts() * part;
        const int64_t past_line = (reinterpret_cast<intptr_t>(what.out) + index * width) % kLine;
        return std::max(index - past_line / width, int64_t(0));
    }

    void run(int part, int) const {
        FloatMode mode;
        set_mode(mode, type);
        sum(what, cut(part), cut(part + 1));
    }
};

// The loops of a rule. With vectors of 512 bits the machine is slower than with those of 256 where memory decides.
const Kernel& loops_of(const Kernels& kernels, const RuleInfo& rule, const Routine* routine, int64_t bytes) {
    if (!rule.made) return kernels.rules[rule.id];
#if defined(__x86_64__)
    constexpr int64_t kBeyondCaches = 64 << 20;
    const bool by_machine = !routine->generated[0][0];
    if (by_machine && bytes > kBeyondCaches && std::string_view(kernels.isa).starts_with("avx512"))
        return kernels_avx2.made;
#endif
    return kernels.made;
}

}  // namespace

const std::vector<const Kernels*>& runnable_kernels() {
    static const std::vector<const Kernels*> runnable = [] {
        std::vector<const Kernels*> list;
#if defined(__x86_64__)
        list.push_back(&kernels_baseline);
        if (__builtin_cpu_supports("avx2") && has_f16c()) {
            list.push_back(&kernels_avx2);
            if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
                list.push_back(&kernels_avx512);
                if (__builtin_cpu_supports("avx512bf16")) list.push_back(&kernels_avx512_bf16);
            }
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

void Tiles::reserve(int64_t bytes, int64_t traffic) {
    threads_ = shares_of(traffic).threads;
    bytes_ = (bytes + kLine - 1) / kLine * kLine;
    if (bytes_ * threads_ + kLine > room_) {
        room_ = bytes_ * threads_ + kLine;
        memory_ = std::make_unique_for_overwrite<char[]>(room_);
    }
    first_ = memory_.get() + (-reinterpret_cast<uintptr_t>(memory_.get()) & (kLine - 1));
}

void run_tasks(const Kernels& kernels, const RuleInfo& rule, const Routine* routine, std::span<const Task> tasks,
               int64_t bytes, const Tiles* tiles) {
    Shares shares = shares_of(bytes);
    if (tiles && shares.threads > tiles->threads()) shares = {tiles->threads(), 1};  // another caller has set a number
    run(Step{kernels, loops_of(kernels, rule, routine, bytes), routine, tasks, bytes, shares, tiles});
}

void sum_blocks(std::span<const Slot* const> slots, double* sums) {
    int64_t blocks = 0, bytes = 0;
    int64_t largest = 0;  // of the gradients that are collected
    std::vector<int64_t> starts;
    for (const Slot* slot : slots) {
        starts.push_back(blocks);
        blocks += blocks_of(slot->size);
        bytes += slot->size * grad_bytes(*slot);
        if (is_gathered(*slot)) largest = std::max(largest, slot->size);
    }
    const Shares shares = shares_of(bytes);
    const int64_t batch = std::min<int64_t>(kTileBytes, largest * static_cast<int64_t>(sizeof(double)));
    const auto batches = std::make_unique_for_overwrite<char[]>(shares.threads * batch);
    run(Squares{current_kernels(), slots, starts, sums, batches.get(), batch, blocks, shares});
}

void sum_blocks_in_large_unit(const Slot& slot, double* sums) {
    FloatMode mode;
    mode.ieee();
    double x[kBlock];
    for (int64_t b = 0; b < blocks_of(slot.size); ++b) {
        const int64_t first = b * kBlock, n = std::min(kBlock, slot.size - first);
        read_gradient(slot, first, first + n, x);
        for (int64_t i = 0; i < n; ++i) x[i] *= 1 / kLargeUnit;
        sums[b] = block_sum<true>(n, [&](int64_t i, int64_t) -> const double* { return x + i; });
    }
}

void sum_parts(std::span<const Summand> parts, int64_t size, Type type, void* out) {
    int64_t bytes_of_element = kItemSize[type];
    for (const Summand& part : parts) bytes_of_element += kItemSize[part.type];
    const Summation what{parts.data(), static_cast<int64_t>(parts.size()), out};
    run(Sum{current_kernels().sum[type == kFloat64], what, size, type, shares_of(size * bytes_of_element)});
}

void zero_grad(const Slot& slot, int64_t begin, int64_t end) {
    const int64_t width = kItemSize[slot.types.grad];
    char* grad = static_cast<char*>(slot.arrays[kGrad]);
    if (!slot.grad_axes) {
        memset(grad + begin * width, 0, (end - begin) * width);
        return;
    }
    for (int64_t i = begin; i < end; ++i) {
        char* element = grad;
        int64_t rest = i;
        for (int axis = slot.grad_axis_count; axis--; rest /= slot.grad_axes[axis].size)
            element += rest % slot.grad_axes[axis].size * slot.grad_axes[axis].stride;
        memset(element, 0, width);
    }
}

}  // namespace fusedstep
