// A list of tensors on one or several GPUs: each has the same tables, and works on the tensors that lie there.
#pragma once

#include <array>

#include "engines/cuda/runtime.h"

namespace fusedstep::cuda {

// The part of a session that is one device.
class Part {
public:
    // With a stream, its memory is that of one step in that stream.
    Part(const RuleShape& rule, int device, int index, int devices, const Stream* ordered);
    ~Part();
    Part(const Part&) = delete;

    void set_tensors(std::vector<Tensor> tensors, std::span<const Clock> clocks);
    void set_hypers(std::vector<Number> hypers);
    void set_gradients(std::span<const Gradient> gradients);

    // A step, piece by piece.
    void begin(Stream stream, bool captured);
    bool was_captured() const { return was_captured_; }
    void square(Stream stream);
    void collect(const Part& other, Stream stream);
    void measure(const Step& step, Stream stream);
    void receive(const Part& first, const Step& step, Stream stream);
    void update(const Step& step, Stream stream);
    void end(Stream stream, bool captured);

    void wait() const;
    Found read(int64_t ticket);
    void read_clocks(std::span<Clock> clocks);

    const int device;
    Event between;  // devices, in a step

private:
    void send(Stream stream, const void* to, const void* from, size_t bytes);
    template <class X>
    void send(Stream stream, const X* to, const std::vector<X>& from) {
        send(stream, to, from.data(), from.size() * sizeof(X));
    }
    void fetch(void* to, const void* from, size_t bytes);
    void find_occupancies();

    const RuleShape rule_;
    const bool has_order_;
    const Stream order_;
    Table table_{};
    int multiprocessors_ = 0;
    std::array<std::array<int, kBodies>, kLoops> occupancies_{};
    std::array<int64_t, kLoops> gradients_of_{};  // how many of them, by loop

    std::vector<Tensor> tensors_;
    std::vector<Gradient> gradients_;
    std::vector<Number> hypers_;
    std::vector<Clock> clocks_;
    std::vector<int32_t> large_;
    bool tensors_changed_ = false, hypers_changed_ = false;
    size_t first_changed_ = 0, last_changed_ = 0;  // of the gradients
    Memory memory_;
    size_t hyper_room_ = 0;  // numbers
    Found* found_ = nullptr;

    Event last_;  // the end of the last step
    bool has_last_ = false, was_captured_ = false;
    Stream last_stream_ = 0;
    cudaStream_t reader_ = nullptr;
};

}  // namespace fusedstep::cuda
