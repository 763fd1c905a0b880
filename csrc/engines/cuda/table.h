// What a GPU knows of a step: tables in its memory, one record per tensor, that the kernels of a step walk.
#pragma once

#include "step.h"

namespace fusedstep::cuda {

// The loops: without conversion, or with whatever is needed, decided tile by tile.
enum Loop : int8_t { float32, float64, generic, kLoops };

constexpr Loop loop_of(const Types& types) {
    const int loop = fusedstep::loop_of(types);
    return loop < kPure ? static_cast<Loop>(loop) : generic;
}

// A tile of elements is what a warp updates at a time; it is also a block of the sum of squares.
constexpr int64_t kTile = 1024;
constexpr int kWarp = 32;

// What stays, of a tensor; what may change with every step, its gradient and hyperparameters, stands in a Gradient.
struct Tensor {
    void* arrays[kRoles];  // not the gradient
    int64_t size;          // 0 if it lies on another device
    int64_t first_tile;
    uint64_t number;  // by which its random bits differ from those of others
    int32_t device;   // among those of the step
    int8_t head;      // how many elements lie before a vector's boundary, or kScattered where arrays disagree
    Type param, state, master;
};
constexpr int8_t kScattered = -1;

struct Gradient {
    void* data;
    int32_t place;  // among those of this step; below 0, it is not there
    int32_t row;    // of hyperparameters, for its tensor
    Type type;
    int8_t head;
    Loop loop;  // that updates its tensor
};

// A hyperparameter: a number, or where on the device a number stands.
struct Number {
    double value;
    const double* at;

    bool operator==(const Number&) const = default;
};

// What is prepared for a tensor in a step.
struct Prepared {
    Derived group;
    double scale64;
    float scale32;
    bool skipped;
    uint64_t noise;
};

// What a step finds out about its gradients.
struct Found {
    double norm;
    int64_t offender;  // the first tensor whose gradient is not finite, where that matters, or kNobody
};
constexpr int64_t kNobody = -1;  // the largest, where numbers have no sign

struct Table {
    int32_t count;            // of tensors
    int32_t device, devices;  // which one this is, and how many share the step
    int32_t hyper_count, rule_hyper_count;
    int32_t tiles;
    Tensor* tensors;
    Gradient* gradients;
    Number* hypers;
    Clock* clocks;
    Prepared* prepared;
    int32_t* owners;                // the tensor of each tile
    int32_t* large;                 // the tensors of more than a tile
    double *sums, *sums_of_sums;    // of squares: of each tile of these; and room for the levels above
    double* squares;                // of each tensor, by device
    double* shares;                 // of each gradient of the step, and room for the levels above
    unsigned long long* offenders;  // the first tensor whose gradient is not finite, by device
};

// How a step is made.
struct Mode {
    Number grad_scale;
    int64_t gradients;  // how many there are
    bool measures, skips_nonfinite;
};

constexpr int kThreads = 256;    // of a block
constexpr int kLeastBlocks = 4;  // on a multiprocessor: with 64 registers, half of the threads that it can hold

enum Body { kShortBody, kFullBody, kBodies };  // a factor and decay; all that surrounds a rule

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

using Prepare = void (*)(Table, Mode, const Found*);
extern const Prepare preparations[];

// Those that no rule concerns.
struct Common {
    void (*own)(Table);                    // find the owners of all tiles; a block per tensor
    void (*square)(Table);                 // the sums of squares of all tiles; a warp per tile
    void (*add_tiles)(Table);              // the sum of each large tensor; a block of kManyThreads per tensor
    void (*measure)(Table, Mode, Found*);  // norm and offender; one block of kManyThreads
};
extern const Common common;
constexpr int kManyThreads = 1024;
constexpr int kFewThreads = 128;  // of a block that prepares

// A piece of what the host tells the device. It travels as an argument of a kernel, which is copied when that is
// started: nothing has to be kept or waited for.
struct Parcel {
    static constexpr int kWords = 1000;
    uint32_t* to;
    int32_t count;
    uint32_t words[kWords];
};
using Deliver = void (*)(Parcel);
extern const Deliver deliver;

}  // namespace fusedstep::cuda
