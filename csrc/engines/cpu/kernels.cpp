// The loop of every rule on a CPU, compiled once per instruction set (-DFUSEDSTEP_ISA=...) and vectorised by the
// compiler. Nothing here may leave a weak symbol behind: the linker could hand code for a newer CPU to an older one.
#include <string.h>

#include "element/norm.h"
#include "element/scalars.h"
#include "engines/cpu/convert.h"
#include "rules/all.h"
#include "step.h"

#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define ONE_VECTOR INDEPENDENT
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#define ONE_VECTOR INDEPENDENT _Pragma("GCC unroll 1")  // or it would be unrolled, and put together again with effort
#endif
#define STRING(x) #x
#define QUOTE(x) STRING(x)
#define JOIN(a, b) a##b
#define KERNELS(isa) JOIN(kernels_, isa)

namespace {

using namespace fusedstep;

// Arrays of the compute type. The elements of an update are independent: arrays that overlap have been refused.
template <class Rule, Variant kVariant, class T, class... State>
INLINE_HOST_DEVICE void loop(const Slot& slot, const Derived& group, int64_t begin, int64_t n, State* __restrict... s) {
    const Scalars<Rule, T> k(group, slot.scale);
    T* __restrict p = static_cast<T*>(slot.arrays[kParam]) + begin;
    const T* __restrict g = static_cast<const T*>(slot.arrays[kGrad]) + begin;
    T* __restrict e = kVariant == kAveraged ? static_cast<T*>(slot.arrays[kAverage]) + begin : nullptr;
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        p[i] = k.template parameter<kVariant>(p[i], g[i], s[i]...);
        if constexpr (kVariant == kAveraged) e[i] = Around::average(k.around, e[i], p[i]);
    }
}

template <class Rule, Variant kVariant, class T>
void update(const Slot& slot, const Derived& group, int64_t begin, int64_t end) {
    constexpr int kCount = words(Rule::states);
    static_assert(kCount <= kMaxStates);
    int64_t n = end - begin;
    auto state = [&](int j) { return static_cast<T*>(slot.arrays[kStates + j]) + begin; };
    if constexpr (kCount == 0) loop<Rule, kVariant, T>(slot, group, begin, n);
    if constexpr (kCount == 1) loop<Rule, kVariant, T>(slot, group, begin, n, state(0));
    if constexpr (kCount == 2) loop<Rule, kVariant, T>(slot, group, begin, n, state(0), state(1));
    if constexpr (kCount == 3) loop<Rule, kVariant, T>(slot, group, begin, n, state(0), state(1), state(2));
}

// Where the arrays of a tensor are, from some element on.
struct Place {
    char* at[kRoles];
};

// Call f(role, bytes per element, whether it is written) for each array that a tensor has.
template <class Rule, class F>
INLINE_HOST_DEVICE void each_array(const Types& types, bool averages, F f) {
    constexpr int kCount = words(Rule::states);
    f(kParam, kItemSize[types.param], true);
    f(kGrad, kItemSize[types.grad], false);
    if constexpr (kCount > 0) f(kStates, kItemSize[types.state], true);
    if constexpr (kCount > 1) f(kStates + 1, kItemSize[types.state], true);
    if constexpr (kCount > 2) f(kStates + 2, kItemSize[types.state], true);
    if (averages) f(kAverage, kItemSize[types.state], true);
    if (types.has_master()) f(kMaster, kItemSize[types.master], true);
}

// The random bits of the elements of a tile, by role. The last vector of a tile may reach beyond it.
struct Noise {
    alignas(64) uint16_t bits[kRoles][kNoiseTile + kWidth];
};

// A vector as the array that the compiler makes a vector of again.
struct Vector {
    union {
        Floats whole;
        float each[kWidth];
    };

    INLINE_HOST_DEVICE float& operator[](int j) { return each[j]; }
};

template <Variant kVariant, class Rule>
INLINE_HOST_DEVICE void update_vector(const Scalars<Rule, float>& k, Vector& p, Vector& g, Vector& s0, Vector& s1,
                                      Vector& s2) {
    constexpr int kCount = words(Rule::states);
    ONE_VECTOR
    for (int j = 0; j < kWidth; ++j) {
        if constexpr (kCount == 0) p[j] = k.template parameter<kVariant>(p[j], g[j]);
        if constexpr (kCount == 1) p[j] = k.template parameter<kVariant>(p[j], g[j], s0[j]);
        if constexpr (kCount == 2) p[j] = k.template parameter<kVariant>(p[j], g[j], s0[j], s1[j]);
        if constexpr (kCount == 3) p[j] = k.template parameter<kVariant>(p[j], g[j], s0[j], s1[j], s2[j]);
    }
}

// Widen a vector, update it and narrow it, all in registers.
template <class Rule, Variant kVariant>
INLINE_HOST_DEVICE void convert_vector(const Scalars<Rule, float>& k, const Types& types, const Place& here,
                                       bool averages, const Noise* noise, int64_t i) {
    constexpr int kCount = words(Rule::states);
    auto chance = [=](int role) { return kVariant == kAveraged && noise ? noise->bits[role] + i : nullptr; };
    Vector p, g, s0, s1, s2, e;
    p.whole = load(types, here.at[kParam], here.at[kMaster]);
    g.whole = load(types.grad, here.at[kGrad]);
    if constexpr (kCount > 0) s0.whole = load(types.state, here.at[kStates]);
    if constexpr (kCount > 1) s1.whole = load(types.state, here.at[kStates + 1]);
    if constexpr (kCount > 2) s2.whole = load(types.state, here.at[kStates + 2]);
    if (kVariant == kAveraged && k.variant <= kDecayed)
        update_vector<kDecayed>(k, p, g, s0, s1, s2);
    else
        update_vector<kVariant>(k, p, g, s0, s1, s2);
    if constexpr (kCount > 0) store(types.state, s0.whole, here.at[kStates], chance(kStates));
    if constexpr (kCount > 1) store(types.state, s1.whole, here.at[kStates + 1], chance(kStates + 1));
    if constexpr (kCount > 2) store(types.state, s2.whole, here.at[kStates + 2], chance(kStates + 2));
    store(types, p.whole, here.at[kParam], here.at[kMaster], chance(kParam));
    if (averages) {
        e.whole = load(types.state, here.at[kAverage]);
        ONE_VECTOR
        for (int j = 0; j < kWidth; ++j) e[j] = Around::average(k.around, e[j], p[j]);
        store(types.state, e.whole, here.at[kAverage], chance(kAverage));
    }
}

// Arrays of other types, a vector's length at a time; what is left of them goes through copies of that length.
template <class Rule, Variant kVariant>
INLINE_HOST_DEVICE void convert(const Types types, const Slot& slot, const Derived& group, int64_t begin, int64_t end) {
    const Scalars<Rule, float> k(group, slot.scale);
    const bool averages = kVariant == kAveraged && group.variant == kAveraged;
    const bool stochastic = kVariant == kAveraged && group.stochastic;
    auto each = [&](auto f) { each_array<Rule>(types, averages, f); };
    Noise noise;
    for (int64_t i = begin; i < end;) {
        int64_t first = 0, stop = end;
        if (stochastic) {
            int64_t tile = i / kNoiseTile;
            first = tile * kNoiseTile;
            stop = first + kNoiseTile < end ? first + kNoiseTile : end;
            each([&](int role, int64_t width, bool written) {
                bool rounded = written && width == kItemSize[kBFloat16] && !(role == kParam && types.has_master());
                if (rounded && role != kMaster) fill_noise(slot.noise, role, tile, noise.bits[role]);
            });
        }
        const bool whole = stop - i >= kWidth;
        const int64_t n = whole ? (stop - i) / kWidth * kWidth : stop - i;
        alignas(64) char copies[kRoles][kWidth * sizeof(float)];
        Place here;
        each([&](int role, int64_t width, bool) {
            here.at[role] = static_cast<char*>(slot.arrays[role]) + i * width;
            if (!whole) {
                memset(copies[role], 0, sizeof(copies[role]));
                memcpy(copies[role], here.at[role], n * width);
                here.at[role] = copies[role];
            }
        });
        for (int64_t j = 0; j < n; j += kWidth) {
            convert_vector<Rule, kVariant>(k, types, here, averages, stochastic ? &noise : nullptr, i + j - first);
            each([&](int role, int64_t width, bool) { here.at[role] += kWidth * width; });
        }
        each([&](int role, int64_t width, bool written) {
            if (!whole && written) memcpy(static_cast<char*>(slot.arrays[role]) + i * width, copies[role], n * width);
        });
        i += n;
    }
}

template <class Rule, Variant kVariant, int kLoop>
void update_halves(const Slot& slot, const Derived& group, int64_t begin, int64_t end) {
    convert<Rule, kVariant>(kCompiled[kLoop], slot, group, begin, end);
}

template <class Rule>
void update_generic(const Slot& slot, const Derived& group, int64_t begin, int64_t end) {
    convert<Rule, kAveraged>(slot.types, slot, group, begin, end);
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

template <Type kHalf>
void square_halves(const void* array, int64_t size, int64_t begin, int64_t end, double* sums) {
    auto x = static_cast<const uint16_t*>(array);
    for (int64_t b = begin; b < end; ++b) {
        int64_t rest = size - b * kBlock;
        const uint16_t* block = x + b * kBlock;
        float row[kLanes];
        sums[b] = block_sum<true>(rest < kBlock ? rest : kBlock, [&](int64_t i, int64_t count) {
            uint16_t copy[kLanes] = {};
            const uint16_t* from = block + i;
            if (count < kLanes) from = static_cast<uint16_t*>(memcpy(copy, from, count * sizeof(uint16_t)));
            for (int64_t k = 0; k < kLanes; k += kWidth) put(load(kHalf, from + k), row + k);
            return static_cast<const float*>(row);
        });
    }
}

#define PURE(Rule, T) \
    {update<Rule, kPlain, T>, update<Rule, kDecayed, T>, update<Rule, kClipped, T>, update<Rule, kAveraged, T>}
#define HALVES(Rule, loop) \
    {update_halves<Rule, kPlain, loop>, update_halves<Rule, kDecayed, loop>, update_generic<Rule>, update_generic<Rule>}
#define MIXED(Rule) {update_generic<Rule>, update_generic<Rule>, update_generic<Rule>, update_generic<Rule>}
#define KERNEL(Rule)                                                                                             \
    {Rule::name,                                                                                                 \
     Rule::states,                                                                                               \
     Rule::hypers,                                                                                               \
     words(Rule::states),                                                                                        \
     words(Rule::hypers),                                                                                        \
     words(Rule::hypers) + words(Around::hypers),                                                                \
     derive<Rule>,                                                                                               \
     {PURE(Rule, float), PURE(Rule, double), HALVES(Rule, 2), HALVES(Rule, 3), HALVES(Rule, 4), HALVES(Rule, 5), \
      MIXED(Rule)}},

static_assert(kPure == 2 && kGeneric == 6);  // as the lines above number the loops
constexpr Kernel kKernels[] = {FUSEDSTEP_RULES(KERNEL) FUSEDSTEP_LIMITS(KERNEL)};

}  // namespace

namespace fusedstep {

extern const Kernels KERNELS(FUSEDSTEP_ISA);
const Kernels KERNELS(FUSEDSTEP_ISA) = {
    QUOTE(FUSEDSTEP_ISA),
    kKernels,
    kKernels + sizeof(kKernels) / sizeof(Kernel),
    {square<float>, square<double>, square_halves<kFloat16>, square_halves<kBFloat16>}};

}  // namespace fusedstep
