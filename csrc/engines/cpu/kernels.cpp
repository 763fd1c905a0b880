// The loop of every rule on a CPU, compiled once per instruction set (-DFUSEDSTEP_ISA=...) and vectorised by the
// compiler. Nothing here may leave a weak symbol behind: the linker could hand code for a newer CPU to an older one.
#include "engines/cpu/kernels.h"

#include <string.h>

#include "element/norm.h"
#include "element/scalars.h"
#include "engines/cpu/convert.h"
#include "engines/cpu/gather.h"
#include "engines/cpu/runs.h"
#include "engines/cpu/sum.h"
#include "rules/all.h"

#define STRING(x) #x
#define QUOTE(x) STRING(x)
#define JOIN(a, b) a##b
#define KERNELS(isa) JOIN(kernels_, isa)
#define UPDATE_PROGRAM(isa) JOIN(update_program_, isa)

namespace fusedstep {

void UPDATE_PROGRAM(FUSEDSTEP_ISA)(const Task& task, int64_t begin, int64_t end);  // in programs.cpp

}  // namespace fusedstep

namespace {

using namespace fusedstep;

// The loop over arrays that all have the type of the arithmetic. The gradient is one array, or the sum of two.
template <class Rule, Variant kVariant, class T, bool kMeasured = false, bool kPair = false>
void update(const Task& task, int64_t begin, int64_t end) {
    const Scalars<Rule, T> k(*task.derived, task.scale);
    constexpr int kCount = k.kStateCount;
    auto array = [&](int role) { return static_cast<T*>(task.slot->arrays[role]) + begin; };
    T* __restrict p = array(kParam);
    const T* __restrict g = array(kGrad);
    const T* __restrict h = kPair ? static_cast<const T*>(task.slot->summands[1].data) + begin : nullptr;
    T* __restrict e = kVariant == kAveraged ? array(kAverage) : nullptr;
    T* __restrict s0 = kCount > 0 ? array(kStates) : nullptr;
    T* __restrict s1 = kCount > 1 ? array(kStates + 1) : nullptr;
    T* __restrict s2 = kCount > 2 ? array(kStates + 2) : nullptr;
    T* __restrict s3 = kCount > 3 ? array(kStates + 3) : nullptr;
    T* __restrict u = kMeasured ? static_cast<T*>(task.updates) : nullptr;
    const int64_t n = end - begin;
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        auto state = [&](int j) INLINE_LAMBDA -> T& { return (j == 0 ? s0 : j == 1 ? s1 : j == 2 ? s2 : s3)[i]; };
        auto seen = [&](T subtracted) INLINE_LAMBDA {
            if constexpr (kMeasured) u[i] = subtracted;
        };
        const T gradient = kPair ? g[i] + h[i] : g[i];
        p[i] = k.template parameter<kVariant>(p[i], gradient, state, seen);
        if constexpr (kVariant == kAveraged) e[i] = Around::average(k.around, e[i], p[i]);
    }
}

// Call f(role, bytes per element, whether it is written) for each array that a tensor has.
template <class Rule, class F>
INLINE_HOST_DEVICE void each_array(const Types& types, bool averages, F f) {
    f(kParam, kItemSize[types.param], true);
    f(kGrad, kItemSize[types.grad], false);
    each_state<Rule>([&](int j) INLINE_LAMBDA { f(kStates + j, kItemSize[types.state], true); });
    if (averages) f(kAverage, kItemSize[types.state], true);
    if (types.has_master()) f(kMaster, kItemSize[types.master], true);
}

// One SIMD register seen as an array, so that the rule for one element can index it.
struct Vector {
    union {
        Floats whole;
        float each[kWidth];
    };

    INLINE_HOST_DEVICE float& operator[](int j) { return each[j]; }
};

template <Variant kVariant, class Rule>
INLINE_HOST_DEVICE void update_vector(const Scalars<Rule, float>& k, Vector& p, Vector& g, Vector* s, Vector& u) {
    ONE_VECTOR
    for (int j = 0; j < kWidth; ++j) {
        auto state = [&](int i) INLINE_LAMBDA -> float& { return s[i][j]; };
        p[j] = k.template parameter<kVariant>(p[j], g[j], state, [&](float x) INLINE_LAMBDA { u[j] = x; });
    }
}

// Widen a vector of each array, update it and narrow it, all in registers. What is subtracted is written to `updates`,
// unless that is null.
template <class Rule, Variant kVariant>
INLINE_HOST_DEVICE void convert_vector(const Scalars<Rule, float>& k, const Types& types, const Cursor& here,
                                       bool averages, float* updates, const Noise* noise, int64_t i) {
    auto chance = [=](int role) { return kVariant == kAveraged && noise ? noise->bits[role] + i : nullptr; };
    Vector p, g, e, u, s[k.kStateCount + 1];  // at least one: an array cannot be empty
    p.whole = load(types, here.at[kParam], here.at[kMaster]);
    g.whole = load(types.grad, here.at[kGrad]);
    each_state<Rule>([&](int j) INLINE_LAMBDA { s[j].whole = load(types.state, here.at[kStates + j]); });
    if (kVariant == kAveraged && k.variant <= kDecayed)
        update_vector<kDecayed>(k, p, g, s, u);
    else
        update_vector<kVariant>(k, p, g, s, u);
    if (kVariant == kAveraged && updates) put(u.whole, updates);
    each_state<Rule>([&](int j)
                         INLINE_LAMBDA { store(types.state, s[j].whole, here.at[kStates + j], chance(kStates + j)); });
    store(types, p.whole, here.at[kParam], here.at[kMaster], chance(kParam));
    if (averages) {
        e.whole = load(types.state, here.at[kAverage]);
        ONE_VECTOR
        for (int j = 0; j < kWidth; ++j) e[j] = Around::average(k.around, e[j], p[j]);
        store(types.state, e.whole, here.at[kAverage], chance(kAverage));
    }
}

// The loop over arrays that are converted, vector by vector: compute(cursor, noise, number of its first element).
template <class Each, class Compute>
INLINE_HOST_DEVICE void each_vector(const Types types, const Task& task, bool stochastic, int64_t begin, int64_t end,
                                    Each each, Compute compute) {
    each_run(types, task, stochastic, begin, end, INT64_MAX, each,
             [&](Cursor& here, const Noise* noise, int64_t first, int64_t n) INLINE_LAMBDA {
                 for (int64_t j = 0; j < n; j += kWidth) {
                     compute(here, noise, first + j);
                     each([&](int role, int64_t width, bool) { here.at[role] += kWidth * width; });
                 }
             });
}

template <class Rule, Variant kVariant>
INLINE_HOST_DEVICE void convert(const Types types, const Task& task, int64_t begin, int64_t end) {
    const Scalars<Rule, float> k(*task.derived, task.scale);
    const bool averages = kVariant == kAveraged && task.derived->variant == kAveraged;
    const bool stochastic = kVariant == kAveraged && task.derived->stochastic;
    float* updates = kVariant == kAveraged ? static_cast<float*>(task.updates) : nullptr;
    each_vector(
        types, task, stochastic, begin, end, [&](auto f) INLINE_LAMBDA { each_array<Rule>(types, averages, f); },
        [&](const Cursor& here, const Noise* noise, int64_t i) INLINE_LAMBDA {
            convert_vector<Rule, kVariant>(k, types, here, averages, updates, noise, i);
            if (updates) updates += kWidth;
        });
}

template <class Rule, Variant kVariant, int kLoop>
void update_narrow(const Task& task, int64_t begin, int64_t end) {
    convert<Rule, kVariant>(kCompiled[kLoop], task, begin, end);
}

template <class Rule>
void update_generic(const Task& task, int64_t begin, int64_t end) {
    convert<Rule, kAveraged>(task.slot->types, task, begin, end);
}

// A parameter that no update has written may be subnormal, which counts as zero.
void average(const Task& task, int64_t begin, int64_t end) {
    const Types types = task.slot->types;
    if (types.param == kFloat64) {
        const auto k = Around::scalars<double>(*task.derived);
        const double* p = static_cast<const double*>(task.slot->arrays[kParam]);
        double* e = static_cast<double*>(task.slot->arrays[kAverage]);
        for (int64_t i = begin; i < end; ++i) e[i] = Around::average(k, e[i], p[i]);
        return;
    }
    const auto k = Around::scalars<float>(*task.derived);
    each_vector(
        types, task, task.derived->stochastic, begin, end,
        [&](auto f) INLINE_LAMBDA {
            f(kParam, kItemSize[types.param], false);
            if (types.has_master()) f(kMaster, kItemSize[types.master], false);
            f(kAverage, kItemSize[types.state], true);
        },
        [&](const Cursor& here, const Noise* noise, int64_t i) INLINE_LAMBDA {
            Vector p, e;
            p.whole = flushed(load(types, here.at[kParam], here.at[kMaster]));
            e.whole = load(types.state, here.at[kAverage]);
            ONE_VECTOR
            for (int j = 0; j < kWidth; ++j) e[j] = Around::average(k, e[j], p[j]);
            store(types.state, e.whole, here.at[kAverage], noise ? noise->bits[kAverage] + i : nullptr);
        });
}

// The average follows in a loop of its own, while the block is in the nearest cache.
template <class Rule>
void update_measured(const Task& task, int64_t begin, int64_t end) {
    update<Rule, kClipped, double, true>(task, begin, end);
    if (task.derived->variant == kAveraged) average(task, begin, end);
}

template <class T>
void square(const void* array, int64_t size, int64_t begin, int64_t end, double* sums) {
    const T* x = static_cast<const T*>(array);
    for (int64_t b = begin; b < end; ++b) {
        int64_t rest = size - b * kBlock;
        const T* block = x + b * kBlock;
        sums[b] = block_sum<true>(rest < kBlock ? rest : kBlock, [=](int64_t i, int64_t) { return block + i; });
    }
}

// The same of the sum of two arrays.
void square_pair(const float* a, const float* b, int64_t size, int64_t begin, int64_t end, double* sums) {
    for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock, rest = size - first;
        float row[kLanes];
        sums[block] = block_sum<true>(rest < kBlock ? rest : kBlock, [&](int64_t i, int64_t count) {
            for (int64_t k = 0; k < count; ++k) row[k] = a[first + i + k] + b[first + i + k];
            return static_cast<const float*>(row);
        });
    }
}

template <Type kType>
void square_narrow(const void* array, int64_t size, int64_t begin, int64_t end, double* sums) {
    const char* x = static_cast<const char*>(array);
    constexpr int64_t kBytes = kItemSize[kType];
    for (int64_t b = begin; b < end; ++b) {
        int64_t rest = size - b * kBlock;
        const char* block = x + b * kBlock * kBytes;
        float row[kLanes];
        sums[b] = block_sum<true>(rest < kBlock ? rest : kBlock, [&](int64_t i, int64_t count) {
            char copy[kLanes * kBytes] = {};
            const char* from = block + i * kBytes;
            if (count < kLanes) from = static_cast<char*>(memcpy(copy, from, count * kBytes));
            for (int64_t k = 0; k < kLanes; k += kWidth) put(load(kType, from + k * kBytes), row + k);
            return static_cast<const float*>(row);
        });
    }
}

// The tables of functions.

template <class Rule, int kLoop, Variant kVariant>
constexpr Update update_of() {
    if constexpr (kYardstick<Rule> && kVariant != kPlain)
        return update_of<Rule, kLoop, kPlain>();
    else if constexpr (kLoop == kGeneric)
        return update_generic<Rule>;
    else if constexpr (!converts_nothing(kCompiled[kLoop]) && kVariant > kDecayed)
        return update_generic<Rule>;
    else if constexpr (!converts_nothing(kCompiled[kLoop]))
        return update_narrow<Rule, kVariant, kLoop>;
    else if constexpr (kCompiled[kLoop].param == kFloat64)
        return update<Rule, kVariant, double>;
    else
        return update<Rule, kVariant, float>;
}

template <class Rule, int kLoop = 0>
constexpr void fill(Kernel& kernel) {
    kernel.update[kLoop][kPlain] = update_of<Rule, kLoop, kPlain>();
    kernel.update[kLoop][kDecayed] = update_of<Rule, kLoop, kDecayed>();
    kernel.update[kLoop][kClipped] = update_of<Rule, kLoop, kClipped>();
    kernel.update[kLoop][kAveraged] = update_of<Rule, kLoop, kAveraged>();
    if constexpr (kLoop < kGeneric) fill<Rule, kLoop + 1>(kernel);
}

template <class Rule>
constexpr Kernel kernel_of() {
    Kernel kernel{};
    fill<Rule>(kernel);
    constexpr Variant kDecays = kYardstick<Rule> ? kPlain : kDecayed;
    kernel.pair[kPlain] = update<Rule, kPlain, float, false, true>;
    kernel.pair[kDecayed] = update<Rule, kDecays, float, false, true>;
    if constexpr (!kYardstick<Rule>) kernel.measured = update_measured<Rule>;
    return kernel;
}

constexpr Kernel kernel_of_programs() {
    Kernel kernel{};
    for (auto& loop : kernel.update)
        for (Update& variant : loop) variant = UPDATE_PROGRAM(FUSEDSTEP_ISA);
    kernel.measured = UPDATE_PROGRAM(FUSEDSTEP_ISA);
    return kernel;
}

#define KERNEL(Rule) kernel_of<Rule>(),
constexpr Kernel kKernels[] = {FUSEDSTEP_RULES(KERNEL) FUSEDSTEP_LIMITS(KERNEL)};

template <Type kType>
constexpr auto square_of() {
    if constexpr (contains(kNarrow, kType))
        return square_narrow<kType>;
    else if constexpr (kType == kFloat32)
        return square<float>;
    else if constexpr (kType == kFloat64)
        return square<double>;
    else
        return nullptr;
}
#define SQUARE(Storage, name, Word) square_of<k##Storage>(),

template <Type kFrom, class T>
constexpr auto gather_of() {
    if constexpr (contains(kFloats, kFrom))
        return gather<kFrom, T>;
    else
        return nullptr;
}
#define GATHER_FLOATS(Storage, name, Word) gather_of<k##Storage, float>(),
#define GATHER_DOUBLES(Storage, name, Word) gather_of<k##Storage, double>(),

}  // namespace

namespace fusedstep {

extern const Kernels KERNELS(FUSEDSTEP_ISA);
const Kernels KERNELS(FUSEDSTEP_ISA) = {QUOTE(FUSEDSTEP_ISA),
                                        kKernels,
                                        kernel_of_programs(),
                                        {{FUSEDSTEP_TYPES(GATHER_FLOATS)}, {FUSEDSTEP_TYPES(GATHER_DOUBLES)}},
                                        average,
                                        {FUSEDSTEP_TYPES(SQUARE)},
                                        square_pair,
                                        {sum<float>, sum<double>}};

}  // namespace fusedstep
