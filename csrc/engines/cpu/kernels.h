// What dispatch and session know of the loops: tables of functions, one for each instruction set.
#pragma once

#include "engines/cpu/boxes.h"
#include "programs/instructions.h"

namespace fusedstep {

// A function that was generated for a rule, an instruction set and a type. It computes whole vectors of so many bytes
// of its arrays, which are in the order of the machine's registers; those that the rule does not use are null. Each
// scalar fills a vector, and so do the constants, which stand behind kMaxRuleScalars of them.
enum Constant : int { kZero = kMaxRuleScalars, kOne, kTopBit, kAllBits, kConstantsEnd };
using Generated = void (*)(const void* arrays, const void* scalars, int64_t bytes);

// A rule that was made at run time, for the loops: code for the machine, and what was generated of it or null, by
// whether it is for doubles and by Ending.
struct Routine {
    const Code* codes;  // by Ending
    int state_count, scalar_count;
    Generated generated[2][2];
};

// One tensor's share in a step.
struct Task {
    const Slot* slot;
    const Derived* derived;  // scalars of the update
    double scale;            // factor on the gradient, which also clips by a norm
    uint64_t noise;          // key of the random bits, where rounding is stochastic
    int32_t loop;
    int32_t traffic;  // bytes that an update of one element reads and writes
    int64_t start;    // bytes that the tasks before this one read and write
    // Where what is subtracted from the parameter is measured: the sums of its squares, one for each block of the
    // tensor, and, for a loop that updates one block, room for what it subtracts, in the type of the computation.
    double* sums = nullptr;
    void* updates = nullptr;
    const Routine* routine = nullptr;  // of a rule that was made at run time
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

// A function that updates the elements [begin, end) of a tensor.
using Update = void (*)(const Task& task, int64_t begin, int64_t end);

// One rule, as one instruction set runs it.
struct Kernel {
    Update update[kLoops][kVariants];
    Update pair[kDecayed + 1];  // for floats, with a gradient that is the sum of two arrays; null where there is none
    Update measured;            // for doubles, telling what is subtracted; the generic loop tells it of floats
};

// A sum of arrays of the same number of elements.
struct Summation {
    const Summand* parts;
    int64_t count;  // of the arrays
    void* out;
};

struct Kernels {
    const char* isa;
    const Kernel* rules;  // in the order of the list of rules
    Kernel made;          // for all rules that were made at run time, with the routine of the task
    // Collect elements of a gradient, by type: as float, and as double.
    void (*gather[2][kTypes])(const Gathering& what, void* tile);
    // Let the average of a tensor without a gradient follow its parameter.
    void (*average)(const Task& task, int64_t begin, int64_t end);
    // The sums of squares of the blocks [begin, end) of an array of `size` elements, by type; see norm.h.
    void (*square[kTypes])(const void* array, int64_t size, int64_t begin, int64_t end, double* sums);
    // The same of the sum of two arrays.
    void (*square_pair)(const float* a, const float* b, int64_t size, int64_t begin, int64_t end, double* sums);
    // Write the elements [begin, end) of a sum of arrays: of floats, narrow or not, and of doubles.
    void (*sum[2])(const Summation& what, int64_t begin, int64_t end);
};

}  // namespace fusedstep
