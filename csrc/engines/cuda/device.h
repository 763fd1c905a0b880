// A session on GPUs: a list of tensors on one or several devices. Each device has tables about all tensors, and works
// on those that lie there.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "engines/cuda/runtime.h"
#include "engines/cuda/table.h"
#include "rules/info.h"

namespace fusedstep::cuda {

// A step, as all devices of a session make it.
struct Step {
    Mode mode;
    Body body;
    bool captured;   // into a graph
    int64_t ticket;  // where its finding is stored
};

// The part of a session that is one device, which is the current one whenever a function is called.
class Device {
public:
    // `index` is that of this device among `devices` devices of the session. With a stream, its memory is allocated and
    // freed in the order of that stream, for a session that is used in this stream only.
    Device(const RuleInfo& rule, int number, int index, int devices, const Stream* ordered);
    ~Device();
    Device(const Device&) = delete;

    void set_tensors(std::vector<Tensor> tensors, std::span<const Clock> clocks);
    void set_hypers(std::span<const Number> hypers);
    void set_gradients(std::span<const Gradient> gradients);

    // The pieces of a step, in their order.
    void begin(Stream stream, bool captured);
    void square(Stream stream);
    void collect(const Device& other, Stream stream);
    void measure(const Step& step, Stream stream);
    void receive(const Device& first, const Step& step, Stream stream);
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
    void fetch(void* to, const void* from, size_t bytes);
    void load_kernels();

    const int rule_;
    const bool has_order_;
    const Stream order_;
    Table table_{};
    int multiprocessors_ = 0;
    std::array<std::array<int, kBodies>, kLoops> occupancies_{};  // blocks of a kernel on a multiprocessor
    std::array<int64_t, kLoops> gradients_of_{};                  // how many gradients each loop has in this step

    std::vector<Tensor> tensors_;
    std::vector<Gradient> gradients_;
    std::vector<Number> hypers_;
    std::vector<Clock> clocks_;
    std::vector<int32_t> large_;
    bool tensors_changed_ = false, hypers_changed_ = false;
    size_t first_changed_ = 0, last_changed_ = 0;  // the range of gradients that have changed
    Memory memory_;
    size_t hyper_room_ = 0;  // how many numbers there is memory for
    Finding* findings_ = nullptr;

    Event last_;  // the end of the last step
    bool has_last_ = false, was_captured_ = false;
    Stream last_stream_ = 0;
    cudaStream_t reader_ = nullptr;
};

// How many findings a session keeps: as many for steps in graphs as for others, so that no other step takes theirs.
constexpr int64_t kFindings = 2 * kTickets;

}  // namespace fusedstep::cuda
