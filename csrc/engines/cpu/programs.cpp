// The loop of rules that are made at run time, compiled once per instruction set (-DFUSEDSTEP_ISA=...). What surrounds
// a rule is computed tile by tile, while its arrays are in the nearest cache. Nothing here may leave a weak symbol
// behind: the linker could hand code for a newer CPU to an older one.
#include "element/scalars.h"
#include "engines/cpu/kernels.h"
#include "engines/cpu/machine.h"
#include "engines/cpu/runs.h"

#define JOIN(a, b) a##b
#define UPDATE_PROGRAM(isa) JOIN(update_program_, isa)

namespace {

using namespace fusedstep;

constexpr int64_t kTileElements = 512;  // of a tile: all arrays of a rule fit into the nearest cache

// A rule with the scalars of an update. It computes elements of arrays, which lie in the registers of the machine in
// this order. The function that was generated, if there is one, does it in place of the machine, by whole vectors.
template <class T>
class Runner {
public:
    Runner(const Task& task, Ending ending)
        : written_(task.routine->codes[static_cast<int>(ending)].written),
          generated_(task.routine->generated[sizeof(T) == sizeof(double)][static_cast<int>(ending)]) {
        const T* const scalars = scalars_of(*task.derived, T());
        if (!generated_) {
            machine::prepare(task.routine->codes[static_cast<int>(ending)], scalars, jumps_);
            return;
        }
        for (int i = 0; i < task.routine->scalar_count; ++i)
            for (T& element : vectors_[i]) element = scalars[i];
        constexpr T kNumbers[] = {0, 1, T(-0.0)};
        for (int i = kZero; i < kAllBits; ++i)
            for (T& element : vectors_[i]) element = kNumbers[i - kZero];
        memset(vectors_[kAllBits], 0xff, sizeof(vectors_[kAllBits]));
    }

    void operator()(T* const* arrays, int64_t n) const {
        if (!generated_) return machine::run(jumps_, written_, arrays, n);
        const int64_t rest = n % kVector, whole = n - rest;
        if (whole > 0) generated_(arrays, vectors_, whole * static_cast<int64_t>(sizeof(T)));
        if (rest == 0) return;
        T* last[kFirstTemporary];
        for (int j = 0; j < kFirstTemporary; ++j) last[j] = arrays[j] ? arrays[j] + whole : nullptr;
        machine::through_copies<kVectorBytes>(last, written_, rest,
                                              [&](T* const* copies) { generated_(copies, vectors_, kVectorBytes); });
    }

private:
    static constexpr int kVectorBytes = kWidth * sizeof(float), kVector = kVectorBytes / sizeof(T);

    const uint32_t written_;
    const Generated generated_;
    alignas(64) T vectors_[kConstantsEnd][kVector];
    machine::Jump<T> jumps_[kMaxInstructions];
};

// The scalars around a rule are taken by value: in memory, they might be changed by what is written to tiles.
template <Variant kVariant, class T>
void see_gradients(const Around::Scalars<T> k, T scale, const T* p, const T* g, T* seen, int64_t n) {
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) seen[i] = Around::gradient<kVariant>(k, scale, p[i], g[i]);
}

template <class T>
void move_parameters(const Around::Scalars<T> k, T* p, T* u, int64_t n) {
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        u[i] = Around::subtracted(k, p[i], u[i]);
        p[i] = Around::parameter<kClipped>(k, p[i], u[i]);
    }
}

template <class T>
void follow(const Around::Scalars<T> k, T* e, const T* p, int64_t n) {
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) e[i] = Around::average(k, e[i], p[i]);
}

// Update a tile by a rule and all that surrounds it. What is subtracted from the parameters is left in `u`.
template <class T>
void update_tile(const Task& task, const Runner<T>& rule, T* p, const T* g, T* const* states, T* u, int64_t n) {
    const Derived& derived = *task.derived;
    const Around::Scalars<T>& k = Around::scalars<T>(derived);
    const T scale = static_cast<T>(task.scale);
    alignas(64) T seen[kTileElements];
    if (derived.variant >= kClipped)
        see_gradients<kClipped>(k, scale, p, g, seen, n);
    else
        see_gradients<kDecayed>(k, scale, p, g, seen, n);
    T* arrays[kFirstTemporary] = {p, seen};
    for (int j = 0; j < kMaxStates; ++j) arrays[kFirstStateOperand + j] = states[j];
    arrays[kUpdateRegister] = u;
    rule(arrays, n);
    move_parameters(k, p, u, n);
}

// All arrays have the type of the computation.
template <class T>
void update_in_place(const Task& task, int64_t begin, int64_t end) {
    const Derived& derived = *task.derived;
    const auto array = [&](int role, int64_t i) {
        T* const first = static_cast<T*>(task.slot->arrays[role]);
        return first ? first + i : nullptr;
    };
    if (derived.variant == kPlain && task.scale == 1 && !task.updates) {
        T* arrays[kFirstTemporary] = {array(kParam, begin), array(kGrad, begin)};
        for (int j = 0; j < task.routine->state_count; ++j) arrays[kFirstStateOperand + j] = array(kStates + j, begin);
        return Runner<T>(task, Ending::kParam)(arrays, end - begin);
    }
    const Runner<T> rule(task, Ending::kUpdate);
    alignas(64) T u[kTileElements];
    T* updates = static_cast<T*>(task.updates);
    for (int64_t i = begin; i < end; i += kTileElements) {
        const int64_t n = end - i < kTileElements ? end - i : kTileElements;
        T* states[kMaxStates] = {};
        for (int j = 0; j < task.routine->state_count; ++j) states[j] = array(kStates + j, i);
        update_tile(task, rule, array(kParam, i), array(kGrad, i), states, updates ? updates : u, n);
        if (derived.variant == kAveraged) follow(Around::scalars<T>(derived), array(kAverage, i), array(kParam, i), n);
        if (updates) updates += n;
    }
}

// Arrays are widened into tiles of floats, and narrowed when they are stored.
void update_converted(const Task& task, int64_t begin, int64_t end) {
    const Types types = task.slot->types;
    const Derived& derived = *task.derived;
    const int state_count = task.routine->state_count < kMaxStates ? task.routine->state_count : kMaxStates;
    const bool averages = derived.variant == kAveraged;
    const auto each = [&](auto f) INLINE_LAMBDA {
        f(kParam, kItemSize[types.param], true);
        f(kGrad, kItemSize[types.grad], false);
        for (int j = 0; j < state_count; ++j) f(kStates + j, kItemSize[types.state], true);
        if (averages) f(kAverage, kItemSize[types.state], true);
        if (types.has_master()) f(kMaster, kItemSize[types.master], true);
    };
    const Runner<float> rule(task, Ending::kUpdate);
    float* updates = static_cast<float*>(task.updates);
    alignas(64) float p[kTileElements], g[kTileElements], e[kTileElements], u[kTileElements];
    alignas(64) float state_tiles[kMaxStates][kTileElements];
    float* states[kMaxStates] = {};
    for (int j = 0; j < state_count; ++j) states[j] = state_tiles[j];

    each_run(types, task, derived.stochastic, begin, end, kTileElements, each,
             [&](const Cursor& here, const Noise* noise, int64_t first, int64_t n) {
                 const auto place = [&](int role, Type type, int64_t i) { return here.at[role] + i * kItemSize[type]; };
                 const auto chance = [&](int role, int64_t i) {
                     return noise ? noise->bits[role] + first + i : nullptr;
                 };
                 for (int64_t i = 0; i < n; i += kWidth) {
                     put(load(types, place(kParam, types.param, i), place(kMaster, types.master, i)), p + i);
                     put(load(types.grad, place(kGrad, types.grad, i)), g + i);
                 }
                 for (int j = 0; j < state_count; ++j)
                     for (int64_t i = 0; i < n; i += kWidth)
                         put(load(types.state, place(kStates + j, types.state, i)), states[j] + i);
                 update_tile(task, rule, p, g, states, u, n);
                 for (int j = 0; j < state_count; ++j)
                     for (int64_t i = 0; i < n; i += kWidth)
                         store(types.state, floats_at(states[j] + i), place(kStates + j, types.state, i),
                               chance(kStates + j, i));
                 for (int64_t i = 0; i < n; i += kWidth)
                     store(types, floats_at(p + i), place(kParam, types.param, i), place(kMaster, types.master, i),
                           chance(kParam, i));
                 if (averages) {
                     for (int64_t i = 0; i < n; i += kWidth)
                         put(load(types.state, place(kAverage, types.state, i)), e + i);
                     follow(Around::scalars<float>(derived), e, p, n);
                     for (int64_t i = 0; i < n; i += kWidth)
                         store(types.state, floats_at(e + i), place(kAverage, types.state, i), chance(kAverage, i));
                 }
                 if (updates) {
                     memcpy(updates, u, n * sizeof(float));
                     updates += n;
                 }
             });
}

}  // namespace

namespace fusedstep {

void UPDATE_PROGRAM(FUSEDSTEP_ISA)(const Task& task, int64_t begin, int64_t end) {
    const Types& types = task.slot->types;
    if (!converts_nothing(types)) return update_converted(task, begin, end);
    if (types.param == kFloat64) return update_in_place<double>(task, begin, end);
    update_in_place<float>(task, begin, end);
}

}  // namespace fusedstep
