// The contract between plans and engines. An engine updates the tensors of a list on one kind of device; a plan asks
// for nothing but what stands here, and no engine knows another.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <variant>

#include "rules/info.h"
#include "step.h"

namespace fusedstep {

using Stream = uintptr_t;  // a handle of the CUDA runtime; 1 and 2 are its default streams

// What a plan asks for, in one step.
struct Request {
    Number grad_scale{1, nullptr};  // factor on all gradients
    Number loss_scale{1, nullptr};  // by which all gradients are divided
    Number skip{0, nullptr};        // leave everything as it is unless this is 0
    bool skips_nonfinite = false;   // the same if a gradient is not finite
    bool measures_updates = false;  // find out the norm of what is subtracted from the parameters
    bool captured = false;          // the step is recorded into a CUDA graph
    // The sum of squares of each slot's gradient, in place of measuring, or none. Where slots are parts of tensors, the
    // sums are those of the whole tensors. The engine for GPUs takes no sums.
    std::span<const SquareSum> sums = {};
    std::span<const Stream> streams = {};  // one for each device of the session
};

// What comes of a step: nothing to tell, a finding, or the ticket under which the session tells its finding later.
struct Done {};
using Ticket = int64_t;
using Outcome = std::variant<Done, Finding, Ticket>;
constexpr Ticket kTickets = 256;  // a finding can be read until this many further steps have been made

// A list of tensors, as an engine holds it. Between calls a session keeps the slots that it was given, so their owner
// leaves the slots where they are and tells what has changed in them.
class Session {
public:
    virtual ~Session() = default;

    // Take a list of tensors: their number, arrays, types and clocks may all be new.
    virtual void set_tensors(std::span<const Slot> slots) = 0;
    // Look anew at the gradient of each slot, at whether there is one, and at the row that the slot names.
    virtual void set_gradients() = 0;
    // Take new addresses of gradients, of which nothing else has changed.
    virtual void set_gradient_addresses() { set_gradients(); }
    // Take a table of hyperparameters: rows, one after the other. Each slot names its row.
    virtual void set_hypers(std::span<const Number> table) = 0;

    // Make a step. Once it has begun to write, it does not fail.
    virtual Outcome run(const Request& request) = 0;
    // The bytes that a step reads and writes, or an upper bound: a caller lets others work during a long step.
    virtual int64_t traffic() const = 0;
    // The sums of squares of what the last step has subtracted from the parameters, if it measured that: one for each
    // block of each slot with a gradient. Empty if the engine keeps none.
    virtual std::span<const double> squares_of_updates() const { return {}; }

    // The rest is for engines whose work goes on after `run` has returned; others keep these defaults.

    // Wait for the steps so far, from any thread.
    virtual void wait() {}
    // Wait for a step, and return what it found.
    virtual Finding read(Ticket) { return {}; }
    // Whether a ticket is that of a step in a graph, whose finding may change with each replay.
    virtual bool is_captured(Ticket) const { return false; }
    // Whether a captured graph may still use the session's memory.
    virtual bool was_captured() const { return false; }
    // Whether the clocks of the slots may be behind those on the device.
    virtual bool has_stale_clocks() const { return false; }
    // Wait for the steps so far, from any thread, and tell how far the slots are.
    virtual void read_clocks(std::span<Clock>) {}
};

// A point in the work of a stream.
class Mark {
public:
    virtual ~Mark() = default;
    virtual bool is_reached() = 0;
};

// What an engine on GPUs says of streams and addresses.
struct Streams {
    int (*device_of)(const void* pointer);  // the number of a GPU, or kHost
    // Make `later` wait for all that `earlier` has been asked to do so far.
    void (*order)(int device, Stream earlier, Stream later);
    std::unique_ptr<Mark> (*mark)(int device, Stream stream);
    bool (*is_capturing)(int device, Stream stream);
};

struct Engine {
    uint64_t layout;  // layout_of the names in the build of the engine
    std::unique_ptr<Session> (*open)(const RuleInfo& rule, std::span<const int> devices);
    // Make one step of a caller who owns all state, with one row of hyperparameters, on one device.
    void (*run_once)(const RuleInfo& rule, std::span<const Slot> slots, std::span<const Number> hypers,
                     const Request& request, int device);
    Streams streams;  // empty in the engine for host memory
};

// A number that differs between builds whose structs, rules or hyperparameters differ: plans refuse an engine of such a
// build. The names are those of a build's rules, hyperparameters and steps of the machine, in the order of their
// tables; `program` is the size of a rule that is made at run time.
constexpr uint64_t layout_of(std::initializer_list<std::string_view> names, size_t program = 0) {
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
    const auto mix = [&](uint64_t word) { hash = (hash ^ word) * 0x100000001b3; };
    for (size_t size : {sizeof(Slot), sizeof(Axis), sizeof(Clock), sizeof(Derived), sizeof(RuleInfo), sizeof(Request),
                        sizeof(Finding), sizeof(Engine), program})
        mix(size);
    for (std::string_view name : names) {
        for (char letter : name) mix(static_cast<unsigned char>(letter));
        mix(names.size());
    }
    return hash;
}
static_assert(layout_of({"low high"}) != layout_of({"high low"}) && layout_of({"a", "b"}) != layout_of({"ab"}));
// The names of a rule, for a list in layout_of.
#define FUSEDSTEP_NAMES(Rule) Rule::name, Rule::states, Rule::hypers,
// The name of the capsule in which a module offers its engine.
constexpr const char* kEngineCapsule = "fusedstep.Engine";

const Engine& host_engine();
// Write the sum of squares of each block of a gradient in host memory, in a unit of SquareSum; see norm.h.
void sum_blocks(const Slot& slot, double unit, double* sums);
// Write the sum of arrays of `size` elements to `out`, which may be one of them, in the order of a balanced tree; see
// engines/cpu/sum.h. `type` is that of `out`: float64 where all arrays are, or float32 where none is.
void sum_parts(std::span<const Summand> parts, int64_t size, Type type, void* out);

}  // namespace fusedstep
