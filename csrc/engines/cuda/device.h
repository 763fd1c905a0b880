// The devices of a session. Each device has tables about all tensors of the session, and updates the tensors that lie
// on it.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "engines/cuda/runtime.h"
#include "engines/cuda/table.h"
#include "programs/made.h"
#include "rules/info.h"

namespace fusedstep::cuda {

// A step, as all devices of a session make it.
struct Step {
    Mode mode;
    Body body;
    bool averages;   // tensors without a gradient are averaged
    bool captured;   // the step is recorded into a graph
    int64_t ticket;  // where its finding is stored
};

// One device of a session. Whoever calls a function of it makes it CUDA's current device before.
class Device {
public:
    // Device `index` of the `devices` devices of a session. For a session that uses one stream only, `ordered` is that
    // stream: memory is allocated and freed in its order.
    Device(const RuleInfo& rule, int number, int index, int devices, const Stream* ordered);
    ~Device();
    Device(const Device&) = delete;

    void set_tensors(std::vector<Tensor> tensors, std::span<const Clock> clocks);
    void set_hypers(std::span<const Number> hypers);
    void set_gradients(std::span<const Gradient> gradients, std::span<const Axis> axes);

    // The pieces of a step, in the order of their calls.
    void begin(Stream stream, bool captured);
    void square(Stream stream);
    void collect(const Device& other, Stream stream);
    void measure(const Step& step, Stream stream);
    void receive(const Device& first, const Step& step, Stream stream);
    void measure_updates(const Step& step, Stream stream);
    void update(const Step& step, Stream stream);
    void end(Stream stream, bool captured);

    bool was_captured() const { return was_captured_; }
    void wait() const;
    Finding read(int64_t ticket);
    void read_clocks(std::span<Clock> clocks);

    const int number;
    Event between;  // recorded where other devices wait for this one within a step

private:
    void send(Stream stream, const void* to, const void* from, size_t bytes);
    template <class X>
    void send(Stream stream, const X* to, const std::vector<X>& from) {
        send(stream, to, from.data(), from.size() * sizeof(X));
    }
    void set_axes(std::span<const Axis> axes);
    void fetch(void* to, const void* from, size_t bytes);
    void load_kernels();
    Threads made_threads() const { return {kMadeThreads, room_of(interpreted_)}; }

    const int rule_;
    const Made* const made_;
    Interpreted interpreted_{};  // a rule that was made at run time
    const bool has_order_;
    const Stream order_;
    Table table_{};
    int multiprocessors_ = 0;
    std::array<std::array<int, kBodies>, kLoops> occupancies_{};  // blocks of a kernel on a multiprocessor
    std::array<int64_t, kLoops> gradients_of_{};                  // gradients in this step, by loop
    std::array<int64_t, kLoops> others_of_{};                     // tensors without a gradient, by loop
    bool gathers_doubles_ = false;                                // for which the full body is needed

    std::vector<Tensor> tensors_;
    std::vector<Gradient> gradients_;
    std::vector<Axis> axes_;
    std::vector<Number> hypers_;
    std::vector<Clock> clocks_;
    std::vector<int32_t> large_;
    bool tensors_changed_ = false, axes_changed_ = false, hypers_changed_ = false;
    size_t first_changed_ = 0, last_changed_ = 0;  // the range of gradients that have changed
    Memory memory_, memory_of_axes_;
    std::vector<Memory> older_;  // memory of axes that a graph may still use
    size_t axis_room_ = 0;
    size_t hyper_room_ = 0;  // how many hyperparameters there is memory for
    Finding* findings_ = nullptr;

    Event last_;  // the end of the last step
    bool has_last_ = false, was_captured_ = false;
    Stream last_stream_ = 0;
    cudaStream_t reader_ = nullptr;
};

// How many findings a session keeps: one half for steps in graphs, so that other steps never overwrite them.
constexpr int64_t kFindings = 2 * kTickets;

}  // namespace fusedstep::cuda
