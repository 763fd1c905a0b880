#include "engines/cuda/device.h"

#include <string.h>

#include <algorithm>

#include "element/norm.h"

namespace fusedstep::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;

// The code of a rule for a GPU, its registers numbered without gaps. Those of arrays and of the update come first.
Interpreted interpreted(const Made& rule) {
    const Code& code = rule.code(Ending::kUpdate);
    const auto steps = std::span(code.instructions, code.count);
    Interpreted made{rule.program.elements.state_count, 0, code.count, {}};
    uint8_t number_of[kRegisters] = {};
    for (int i = 0; i < kRegisters; ++i) {
        const bool is_array = i < kFirstStateOperand + made.state_count || i == kUpdateRegister;
        const auto names = [=](const Instruction& step) { return step.x == i || step.y == i; };
        if (is_array || std::ranges::any_of(steps, names)) number_of[i] = static_cast<uint8_t>(made.register_count++);
    }
    std::ranges::transform(steps, made.instructions, [&](Instruction step) {
        step.x = number_of[step.x];
        step.y = number_of[step.y];
        return step;
    });
    return made;
}

int64_t tiles_of(int64_t size) {
    return blocks_of(size);
}

// A piece of memory that is cut into arrays.
class Cut {
public:
    // Without memory, only the bytes are counted.
    explicit Cut(char* memory = nullptr) : memory_(memory) {}
    template <class X>
    void operator()(X*& array, int64_t count) {
        if (memory_) array = reinterpret_cast<X*>(memory_ + bytes_);
        bytes_ += (count * static_cast<int64_t>(sizeof(X)) + 255) / 256 * 256;
    }
    int64_t bytes() const { return bytes_; }

private:
    char* memory_;
    int64_t bytes_ = 0;
};

}  // namespace

Device::Device(const RuleInfo& rule, int number, int index, int devices, const Stream* ordered)
    : number(number), rule_(rule.id), made_(rule.made), has_order_(ordered), order_(ordered ? *ordered : 0) {
    table_.device = index;
    table_.devices = devices;
    table_.hyper_count = rule.hyper_count;
    table_.own_hyper_count = rule.own_hyper_count;
    if (made_) interpreted_ = interpreted(*made_);
    load_kernels();
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, number), "asking about a GPU");
}

Device::~Device() {
    if (reader_) cudaStreamDestroy(reader_);
}

void Device::set_tensors(std::vector<Tensor> tensors, std::span<const Clock> clocks) {
    tensors_ = std::move(tensors);
    clocks_.assign(clocks.begin(), clocks.end());
    large_.clear();
    int64_t tiles = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        Tensor& tensor = tensors_[i];
        if (tensor.device != table_.device) tensor.size = 0;
        tensor.first_tile = tiles;
        tiles += tiles_of(tensor.size);
        if (tensor.size > kTile) large_.push_back(static_cast<int32_t>(i));
    }
    constexpr int64_t kMostTiles = INT32_MAX - (1 << 20);  // a warp may step beyond the last tile
    if (tiles > kMostTiles) throw std::length_error("the tensors of one step have some 2**41 elements");
    const int64_t count = static_cast<int64_t>(tensors_.size());
    hyper_room_ = std::max<int64_t>(count, 1) * table_.hyper_count;
    auto cut = [&](Cut each) {
        each(table_.tensors, count);
        each(table_.gradients, count);
        each(table_.hypers, hyper_room_);
        each(table_.clocks, count);
        each(table_.prepared, count);
        each(table_.owners, tiles);
        each(table_.large, static_cast<int64_t>(large_.size()));
        each(table_.sums, tiles);
        each(table_.sums_of_sums, tiles);
        each(table_.squares, count * table_.devices);
        each(table_.shares, count + blocks_of(count));
        each(table_.offenders, table_.devices);
        each(findings_, kFindings);
        return each.bytes();
    };
    const int64_t bytes = cut(Cut());
    Memory memory(bytes, has_order_ ? &order_ : nullptr);
    cut(Cut(memory.as<char>()));
    memory_ = std::move(memory);  // the old memory is freed when no step needs it
    table_.count = static_cast<int32_t>(count);
    table_.tiles = static_cast<int32_t>(tiles);
    tensors_changed_ = true;
    gradients_.assign(count, {nullptr, -1, 0, 0, kNeighbours, 0, kTypes, generic});
    first_changed_ = 0;
    last_changed_ = count;
}

void Device::set_hypers(std::span<const Number> hypers) {
    if (hypers.size() > hyper_room_) throw std::length_error("there are more rows of hyperparameters than tensors");
    hypers_.assign(hypers.begin(), hypers.end());
    hypers_changed_ = true;
}

void Device::set_gradients(std::span<const Gradient> gradients, std::span<const Axis> axes) {
    set_axes(axes);
    gradients_of_ = others_of_ = {};
    gathers_doubles_ = false;
    for (size_t i = 0; i < gradients.size(); ++i) {
        const Gradient& now = gradients[i];
        gathers_doubles_ = gathers_doubles_ || (now.loop == float64 && now.axis_count != kNeighbours);
        if (tensors_[i].size) ++(now.order >= 0 ? gradients_of_ : others_of_)[now.loop];
        if (memcmp(&gradients_[i], &now, sizeof(Gradient)) == 0) continue;
        gradients_[i] = now;
        first_changed_ = std::min(first_changed_, i);
        last_changed_ = std::max(last_changed_, i + 1);
    }
}

void Device::set_axes(std::span<const Axis> axes) {
    if (axes.size() == axes_.size() && memcmp(axes.data(), axes_.data(), axes.size_bytes()) == 0) return;
    if (axes.size() > axis_room_) {
        const size_t room = 2 * axes.size();
        Memory memory(static_cast<int64_t>(room * sizeof(Axis)), has_order_ ? &order_ : nullptr);
        if (was_captured_) older_.push_back(std::move(memory_of_axes_));
        memory_of_axes_ = std::move(memory);
        table_.axes = memory_of_axes_.as<Axis>();
        axis_room_ = room;
    }
    axes_.assign(axes.begin(), axes.end());
    axes_changed_ = true;
}

void Device::send(Stream stream, const void* to, const void* from, size_t bytes) {
    auto* words = static_cast<const char*>(from);
    for (size_t done = 0; done < bytes;) {
        Parcel parcel;
        const size_t now = std::min(bytes - done, sizeof(parcel.words));
        parcel.to = reinterpret_cast<uint32_t*>(static_cast<char*>(const_cast<void*>(to)) + done);
        parcel.count = static_cast<int32_t>(now / sizeof(uint32_t));
        memcpy(parcel.words, words + done, now);
        launch(deliver, 1, kManyThreads, stream, parcel);
        done += now;
    }
}

// Tell the device what has changed. A step in a graph tells everything but the clocks, since steps with other
// gradients may come before a replay.
void Device::begin(Stream stream, bool captured) {
    constexpr Stream kDefaults = 2;  // a larger handle may be a new stream's that was an old one's before
    if (!captured && has_last_ && (stream != last_stream_ || stream > kDefaults)) last_.let_wait(stream);
    was_captured_ = was_captured_ || captured;
    if (tensors_changed_) {
        send(stream, table_.clocks, clocks_);
        send(stream, table_.large, large_);
        auto set = [&](void* array, int byte, size_t bytes) {
            check(cudaMemsetAsync(array, byte, bytes, stream_of(stream)), "setting memory of the GPU");
        };
        set(table_.offenders, 0xff, table_.devices * sizeof(*table_.offenders));  // kNobody
        set(findings_, 0xff, kFindings * sizeof(Finding));                        // NaN and kNobody
        // Tensors without elements have no tile that would set their sum.
        set(table_.squares, 0, sizeof(SquareSum) * table_.count * table_.devices);
    }
    if (tensors_changed_ || was_captured_) send(stream, table_.tensors, tensors_);
    if (tensors_changed_ && table_.tiles) launch(common.own, std::min(table_.count, 65535), kThreads, stream, table_);
    if (axes_changed_ || was_captured_) send(stream, table_.axes, axes_);
    if (hypers_changed_ || was_captured_) send(stream, table_.hypers, hypers_);
    if (was_captured_) first_changed_ = 0, last_changed_ = gradients_.size();
    if (first_changed_ < last_changed_)
        send(stream, table_.gradients + first_changed_, gradients_.data() + first_changed_,
             (last_changed_ - first_changed_) * sizeof(Gradient));
    tensors_changed_ = axes_changed_ = hypers_changed_ = false;
    first_changed_ = gradients_.size();
    last_changed_ = 0;
}

void Device::square(Stream stream) {
    const int64_t blocks = std::min<int64_t>((table_.tiles + kWarps - 1) / kWarps, multiprocessors_ * 8);
    if (blocks) launch(common.square, blocks, kThreads, stream, table_);
    if (!large_.empty()) launch(common.add_tiles, large_.size(), kManyThreads, stream, table_);
}

void Device::collect(const Device& other, Stream stream) {
    auto copy = [&](auto* to, auto* from, size_t count) {
        check(cudaMemcpyPeerAsync(to, number, from, other.number, count * sizeof(*to), stream_of(stream)),
              "copying from one GPU to another");
    };
    const int32_t index = other.table_.device;
    const int64_t first = static_cast<int64_t>(index) * table_.count;
    copy(table_.squares + first, other.table_.squares + first, table_.count);
    copy(table_.offenders + index, other.table_.offenders + index, 1);
}

void Device::measure(const Step& step, Stream stream) {
    launch(common.measure, 1, kManyThreads, stream, table_, step.mode, findings_ + step.ticket);
}

void Device::receive(const Device& first, const Step& step, Stream stream) {
    check(cudaMemcpyPeerAsync(findings_ + step.ticket, number, first.findings_ + step.ticket, first.number,
                              sizeof(Finding), stream_of(stream)),
          "copying from one GPU to another");
}

void Device::measure_updates(const Step& step, Stream stream) {
    launch(common.measure_updates, 1, kManyThreads, stream, table_, step.mode, findings_ + step.ticket);
}

// Query the occupancy of all kernels of the rule. The query also loads them, which CUDA forbids during a capture.
void Device::load_kernels() {
    auto occupancy = [](auto kernel, Threads threads) {
        int blocks = 0;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads.count, threads.shared_bytes),
              "loading a kernel");
        return std::max(blocks, 1);
    };
    for (Loop loop : {float32, float64, generic})
        for (Body body : {kShortBody, kFullBody})
            occupancies_[loop][body] = made_ ? occupancy(made_update_of(loop, body), made_threads())
                                             : occupancy(update_of(loop, rule_, body), kThreads);
    for (Loop loop : {float32, float64, generic}) occupancy(average_of(loop), kThreads);
    made_ ? occupancy(prepare_made, kFewThreads) : occupancy(preparations[rule_], kFewThreads);
    occupancy(common.square, kThreads);
    occupancy(common.add_tiles, kManyThreads);
    occupancy(common.measure, kManyThreads);
    occupancy(common.add_updates, kManyThreads);
    occupancy(common.measure_updates, kManyThreads);
}

void Device::update(const Step& step, Stream stream) {
    table_.measures_updates = step.mode.measures_updates;
    const int64_t prepares = std::max(1, (table_.count + kFewThreads - 1) / kFewThreads);
    const Finding* const found = findings_ + step.ticket;
    if (made_)
        launch(prepare_made, prepares, kFewThreads, stream, table_, step.mode, found, made_->program.numbers,
               made_->has_lr);
    else
        launch(preparations[rule_], prepares, kFewThreads, stream, table_, step.mode, found);
    auto run = [&](auto kernel, Threads threads, int64_t occupancy, const auto&... rule) {
        const int64_t warps = threads.count / kWarp, wanted = (table_.tiles + warps - 1) / warps;
        launch(kernel, std::min<int64_t>(wanted, occupancy * multiprocessors_), threads, stream, table_, rule...);
    };
    for (Loop loop : {float32, float64, generic}) {
        const Body body = loop == float64 && gathers_doubles_ ? kFullBody : step.body;
        if (gradients_of_[loop] && made_)
            run(made_update_of(loop, body), made_threads(), occupancies_[loop][body], interpreted_);
        else if (gradients_of_[loop])
            run(update_of(loop, rule_, body), kThreads, occupancies_[loop][body]);
        if (step.averages && others_of_[loop]) run(average_of(loop), kThreads, kLeastBlocks);
    }
    if (step.mode.measures_updates && !large_.empty())
        launch(common.add_updates, large_.size(), kManyThreads, stream, table_);
}

void Device::end(Stream stream, bool captured) {
    if (captured) return;
    last_.record(stream);
    last_stream_ = stream;
    has_last_ = true;
}

// Wait for the steps so far; where steps may have been replayed in graphs, for all work of the device.
void Device::wait() const {
    if (was_captured_)
        check(cudaDeviceSynchronize(), "waiting for the GPU");
    else if (has_last_)
        last_.wait();
}

void Device::fetch(void* to, const void* from, size_t bytes) {
    wait();
    if (!reader_) check(cudaStreamCreateWithFlags(&reader_, cudaStreamNonBlocking), "making a stream");
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, reader_), "reading from the GPU");
    check(cudaStreamSynchronize(reader_), "reading from the GPU");
}

Finding Device::read(int64_t ticket) {
    Finding found;
    fetch(&found, findings_ + ticket, sizeof(found));
    return found;
}

void Device::read_clocks(std::span<Clock> clocks) {
    if (tensors_changed_)
        std::ranges::copy(clocks_, clocks.begin());
    else
        fetch(clocks.data(), table_.clocks, clocks.size_bytes());
}

}  // namespace fusedstep::cuda
