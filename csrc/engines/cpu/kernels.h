// What dispatch and session know of the loops: tables of functions, one for each instruction set.
#pragma once

#include "engines/cpu/boxes.h"

namespace fusedstep {

// One tensor's share in a step.
struct Task {
    const Slot* slot;
    const Derived* derived;  // scalars of the update
    double scale;            // factor on the gradient, which also clips by a norm
    uint64_t noise;          // key of the random bits, where rounding is stochastic
    int32_t loop;
    int32_t traffic;  // bytes that an update of one element reads and writes
    // Where what is subtracted from the parameter is measured: the sums of its squares, one for each block of the
    // tensor, and, for a loop that updates one block, room for what it subtracts, in the type of the computation.
    double* sums = nullptr;
    void* updates = nullptr;
};

// The combinations of types for which each rule has a loop of its own. Every other combination is computed by the
// generic loop, which decides vector by vector how to convert.
constexpr Types kCompiled[] = {{kFloat32, kFloat32, kFloat32},    {kFloat64, kFloat64, kFloat64},
                               {kBFloat16, kBFloat16, kBFloat16}, {kBFloat16, kBFloat16, kFloat32},
                               {kFloat16, kFloat16, kFloat16},    {kFloat16, kFloat16, kFloat32}};
constexpr int kGeneric = sizeof(kCompiled) / sizeof(Types);
constexpr int kLoops = kGeneric + 1;

// Whether all arrays of a loop have the type of the computation.
constexpr bool converts_nothing(const Types& types) {
    return !contains(kNarrow, types.param) && types == Types{types.param, types.param, types.param};
}

constexpr int loop_of(const Types& types) {
    int loop = 0;
    while (loop < kGeneric && !(kCompiled[loop] == types)) ++loop;
    return loop;
}

// One rule, as one instruction set runs it: functions that update the elements [begin, end) of a tensor.
struct Kernel {
    void (*update[kLoops][kVariants])(const Task& task, int64_t begin, int64_t end);
    // The same for doubles, telling what is subtracted. The generic loop tells it of floats.
    void (*measured)(const Task& task, int64_t begin, int64_t end);
};

struct Kernels {
    const char* isa;
    const Kernel* rules;  // in the order of the list of rules
    // Collect elements of a gradient, by type: as float, and as double.
    void (*gather[2][kTypes])(const Gathering& what, void* tile);
    // Let the average of a tensor without a gradient follow its parameter.
    void (*average)(const Task& task, int64_t begin, int64_t end);
    // The sums of squares of the blocks [begin, end) of an array of `size` elements, by type; see norm.h.
    void (*square[kTypes])(const void* array, int64_t size, int64_t begin, int64_t end, double* sums);
};

}  // namespace fusedstep
