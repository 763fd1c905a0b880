// What the module _cuda offers to plans: sessions, each the side of a list of tensors that lies on GPUs. Nothing here
// needs CUDA to be compiled; a plan gets the engine when the first array on a GPU arrives.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engines/cuda/table.h"
#include "step.h"

namespace fusedstep::cuda {

using Stream = uintptr_t;  // a handle of the runtime; 1 and 2 are its default streams

// A step, as the host asks for it.
struct Step {
    Mode mode;
    Body body;
    std::span<const Stream> streams;  // of each device
    bool captured;                    // into a graph
    int64_t ticket;                   // under which what it found out can be read, below 2 kTickets
};
constexpr int64_t kTickets = 256;  // and as many for steps in graphs, so that no other step takes theirs

class Session {
public:
    virtual ~Session() = default;

    // The tensors, and how far they are.
    virtual void set_tensors(std::vector<Tensor> tensors, std::span<const Clock> clocks) = 0;
    // Rows of hyperparameters.
    virtual void set_hypers(std::vector<Number> hypers) = 0;
    virtual void set_gradients(std::span<const Gradient> gradients) = 0;
    // Everything goes to the streams; nothing is waited for.
    virtual void run(const Step& step) = 0;

    // Whether a graph may use it.
    virtual bool was_captured() const = 0;

    // What waits for the steps so far; from any thread.
    virtual void wait() = 0;
    virtual Found read(int64_t ticket) = 0;
    virtual void read_clocks(std::span<Clock> clocks) = 0;
};

// A rule: its number in the list, and how many hyperparameters it and all that surrounds it have.
struct RuleShape {
    int number;
    int32_t hyper_count, rule_hyper_count;
};

// A point in the work of a stream.
class Mark {
public:
    virtual ~Mark() = default;
    virtual bool is_reached() = 0;
};

struct Engine {
    int64_t layout;
    std::unique_ptr<Session> (*open)(const RuleShape& rule, std::span<const int> devices);
    int (*device_of)(const void* pointer);  // or kHost
    // Make `later` wait for all that `earlier` has been asked to do so far.
    void (*order)(int device, Stream earlier, Stream later);
    std::unique_ptr<Mark> (*mark)(int device, Stream stream);
    bool (*is_capturing)(int device, Stream stream);
    // A step of a caller who owns all state, with clocks of its own.
    void (*run_once)(const RuleShape& rule, std::vector<Tensor> tensors, std::span<const Gradient> gradients,
                     std::vector<Number> hypers, std::span<const Clock> clocks, int device, const Step& step);
};

constexpr const char* kCapsule = "fusedstep.cuda.Engine";
// Differs between builds that would not understand each other.
constexpr int64_t kLayout = sizeof(Tensor) + 1000 * (sizeof(Gradient) + 1000 * (sizeof(Step) + 1000 * sizeof(Engine)));

}  // namespace fusedstep::cuda
