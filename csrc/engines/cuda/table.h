// What a GPU knows of a step: tables in its memory, one record per tensor, that the kernels of a step walk.
#pragma once

#include "programs/instructions.h"

namespace fusedstep::cuda {

// The loops: two that convert nothing, and one that converts as needed, decided tile by tile.
enum Loop : int8_t { float32, float64, generic, kLoops };

constexpr Loop loop_of(const Types& types, bool gathers) {
    if (types.param == kFloat64) return float64;
    return types == Types{kFloat32, kFloat32, kFloat32} && !gathers ? float32 : generic;
}

// A tile of elements is what a warp updates at a time; it is also a block of the sum of squares.
constexpr int64_t kTile = 1024;
constexpr int kWarp = 32;

// A tensor, uploaded once per session. What may change from step to step is in Gradient.
struct Tensor {
    void* arrays[kRoles];  // not the gradient
    int64_t size;          // elements, 0 if the tensor lies on another device
    int64_t origin;        // number of the first element in the whole tensor
    int64_t first_tile;
    uint64_t noise_id;  // makes the random bits of each tensor different
    void* shown[kShown];
    int32_t device;  // index among the devices of the step
    int8_t head;     // elements before the first one at a vector boundary, or kScattered where arrays disagree
    Type param, state, master, shown_type;
};
constexpr int8_t kScattered = -1;

struct Gradient {
    void* data;
    int32_t order;  // index among the gradients of this step, or -1 where the tensor has none
    int32_t row;    // of the table of hyperparameters
    int32_t first_axis;
    int8_t axis_count;  // where elements are found one by one; else kNeighbours
    int8_t head;
    Type type;
    Loop loop;  // the loop that updates the tensor
};
constexpr int8_t kNeighbours = -1;

// What `prepare` leaves for a tensor in a step.
struct Prepared {
    Derived derived;
    double scale64;
    float scale32;
    bool skipped;
    bool averaged;  // without a gradient
    uint64_t noise;
};

// A session's tables on one device. Each device of a session has all of them, about all tensors.
struct Table {
    int32_t count;            // number of tensors
    int32_t device, devices;  // index of this device, and how many devices share the step
    int32_t hyper_count, own_hyper_count;
    int32_t tiles;
    Tensor* tensors;
    Gradient* gradients;
    Axis* axes;  // of gradients that do not lie in memory like their parameters
    Number* hypers;
    Clock* clocks;
    Prepared* prepared;
    int32_t* owners;                // the tensor of each tile
    int32_t* large;                 // the tensors of more than a tile
    double *sums, *sums_of_sums;    // of squares: for each tile of large tensors, and room for adding them
    SquareSum* squares;             // sum of squares of each tensor, by device
    double* shares;                 // of each gradient in the sum of squares of the step, and room for adding them
    bool measures_updates;          // in this step
    unsigned long long* offenders;  // the first tensor whose gradient is not finite, by device
};

// How a step is made.
struct Mode {
    Number grad_scale, loss_scale, skip;
    int64_t gradients;  // how many gradients the step has
    bool measures, skips_nonfinite, measures_updates;
};

constexpr int kThreads = 256;    // threads of a block of `update`
constexpr int kLeastBlocks = 4;  // per multiprocessor, so that a thread has 64 registers

// What the body of a loop contains: a factor on the gradient and decay, or all that may surround a rule. The full body
// of doubles also reads gradients of any strides and type.
enum Body { kShortBody, kFullBody, kBodies };

// The kernels, in the order of the list of rules.
using Update = void (*)(Table);
struct Updates {
    Update of[kBodies];
};
extern const Updates updates_float32[], updates_float64[], updates_generic[];
inline Update update_of(Loop loop, int rule, Body body) {
    const Updates* const updates[kLoops] = {updates_float32, updates_float64, updates_generic};
    return updates[loop][rule].of[body];
}

using Prepare = void (*)(Table, Mode, const Finding*);
extern const Prepare preparations[];

// The elements of a rule that is made at run time, as an argument of kernels. The machine's registers are numbered
// without gaps: parameter, gradient, states, update, intermediate results.
struct Interpreted {
    int32_t state_count, register_count, count;
    Instruction instructions[kMaxInstructions];
};
constexpr int kMadeThreads = 128;    // threads of a block, whose registers share the memory of the block
constexpr int kRegisterBytes = 16;   // what a register of the machine holds for a thread
constexpr int kLeastMadeBlocks = 5;  // per multiprocessor, so that a thread has 96 registers of the processor
// The memory that the launch of such a kernel gives to each block.
constexpr int64_t room_of(const Interpreted& rule) {
    return static_cast<int64_t>(sizeof(rule.instructions)) + rule.register_count * kMadeThreads * kRegisterBytes;
}

// The kernels of all rules that are made at run time.
using UpdateMade = void (*)(Table, Interpreted);
struct UpdatesOfMade {
    UpdateMade of[kBodies];
};
extern const UpdatesOfMade made_float32, made_float64, made_generic;
inline UpdateMade made_update_of(Loop loop, Body body) {
    const UpdatesOfMade updates[kLoops] = {made_float32, made_float64, made_generic};
    return updates[loop].of[body];
}
// The numbers of the rule, and whether the first hyperparameter is the learning rate.
using PrepareMade = void (*)(Table, Mode, const Finding*, Numbers, bool has_lr);
extern const PrepareMade prepare_made;

// The kernels that let the averages of tensors without a gradient follow their parameters.
extern const Update average_float32, average_float64, average_generic;
inline Update average_of(Loop loop) {
    const Update averages[kLoops] = {average_float32, average_float64, average_generic};
    return averages[loop];
}

// The kernels that are the same for all rules.
struct Common {
    void (*own)(Table);                      // find the owners of all tiles; a block per tensor
    void (*square)(Table);                   // the sums of squares of all tiles; a warp per tile
    void (*add_tiles)(Table);                // the sum of each large tensor; a block of kManyThreads per tensor
    void (*measure)(Table, Mode, Finding*);  // norm and offender; one block of kManyThreads
    // The same for updates: the sum of each large tensor, and the norm.
    void (*add_updates)(Table);
    void (*measure_updates)(Table, Mode, Finding*);
};
extern const Common common;
constexpr int kManyThreads = 1024;
constexpr int kFewThreads = 128;  // threads of a block of `prepare`

// A piece of what the host tells the device. It travels as the argument of a kernel. CUDA copies arguments when a
// kernel is launched, so nothing has to be kept in memory or waited for, and a graph contains it.
struct Parcel {
    static constexpr int kWords = 1000;
    uint32_t* to;
    int32_t count;
    uint32_t words[kWords];
};
using Deliver = void (*)(Parcel);
extern const Deliver deliver;

}  // namespace fusedstep::cuda
