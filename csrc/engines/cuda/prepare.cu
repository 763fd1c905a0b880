// What comes before the update on a GPU: tables arrive, gradients are measured, clocks advance and scalars are
// prepared.
#include <cuda_runtime.h>
#include <stddef.h>

#include "element/norm.h"
#include "element/philox.h"
#include "element/scalars.h"
#include "engines/cuda/compiler.h"
#include "engines/cuda/gather.h"
#include "engines/cuda/sums.h"
#include "programs/numbers.h"
#include "rules/all.h"
#include "storage/all.h"

namespace {

using namespace fusedstep;
using namespace fusedstep::cuda;

static_assert(kTile == kBlock && kWarp == kLanes);

__global__ void unpack(const __grid_constant__ Parcel parcel) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < parcel.count) parcel.to[i] = parcel.words[i];
}

__global__ void own_tiles(const __grid_constant__ Table table) {
    for (int32_t i = blockIdx.x; i < table.count; i += gridDim.x) {
        const Tensor& tensor = table.tensors[i];
        for (int64_t tile = threadIdx.x; tile * kTile < tensor.size; tile += blockDim.x)
            table.owners[tensor.first_tile + tile] = i;
    }
}

INLINE_HOST_DEVICE double value_of(const Number& number) {
    if (!number.at) return number.value;
    return number.type == kFloat32 ? *static_cast<const float*>(number.at) : *static_cast<const double*>(number.at);
}

// The factor on all gradients of a step.
INLINE_HOST_DEVICE double scale_of(const Mode& how) {
    return value_of(how.grad_scale) / value_of(how.loss_scale);
}

// The hyperparameters of a tensor, those of its rule first.
INLINE_HOST_DEVICE const Number* hypers_of(const Table& table, int32_t i) {
    return table.hypers + static_cast<int64_t>(table.gradients[i].row) * table.hyper_count;
}

// The sum of a block by a warp, whose lanes are the lanes of norm.h. Only lane 0 returns the sum.
template <bool kSquare, int kUnrolled, class Row>
__device__ double warp_sum(int lane, int64_t n, Row row) {
    double sum = 0;
#pragma unroll kUnrolled
    for (int64_t k = lane; k < n; k += kWarp) {
        const double value = row(k);
        sum = sum + (kSquare ? value * value : value);
    }
    return fold(sum);
}

template <class Row>
__device__ double sum_of_squares(int lane, int64_t n, Row row) {
    return warp_sum<true, 8>(lane, n, row);
}
// The same where a call finds each element: several calls under way at once would need too many registers.
template <class Row>
__device__ double sum_of_squares_called(int lane, int64_t n, Row row) {
    return warp_sum<true, 1>(lane, n, row);
}

INLINE_HOST_DEVICE float widened_at(Type type, const void* array, int64_t i) {
    return with_narrow(type, [=](auto storage) INLINE_LAMBDA {
        return storage.widen(uint32_t(static_cast<const typename decltype(storage)::Word*>(array)[i]));
    });
}

// The n elements of a gradient from number `begin` on, a tile of it or less.
struct Part {
    const Table& table;
    const Gradient& gradient;
    int64_t begin, n;
};

// The sum of squares of a part whose step computes in double, each element times a factor. Loops of 8 elements at once
// need many registers, so neither this function nor the next one is inlined.
__device__ __noinline__ double sum_of_doubles(int lane, const Part& part, double factor) {
    if (part.gradient.axis_count != kNeighbours) {
        const Gathered from(part.table, part.gradient, part.begin);
        return sum_of_squares_called(lane, part.n, [=](int64_t k) { return gathered<double>(from, k) * factor; });
    }
    auto x = static_cast<const double*>(part.gradient.data) + part.begin;
    return sum_of_squares(lane, part.n, [=](int64_t k) { return x[k] * factor; });
}
__device__ __noinline__ double sum_of_floats(int lane, const Part& part) {
    const Gradient& gradient = part.gradient;
    if (gradient.axis_count != kNeighbours) {
        const Gathered from(part.table, gradient, part.begin);
        return sum_of_squares_called(lane, part.n, [=](int64_t k) { return gathered<float>(from, k); });
    }
    if (gradient.type == kFloat32) {
        auto x = static_cast<const float*>(gradient.data) + part.begin;
        return sum_of_squares(lane, part.n, [=](int64_t k) { return x[k]; });
    }
    const Type type = gradient.type;
    const void* const data = gradient.data;
    const int64_t begin = part.begin;
    return sum_of_squares(lane, part.n, [=](int64_t k) { return widened_at(type, data, begin + k); });
}

// Whether the sum of the squares of a gradient has to be made anew in kLargeUnit. There, it is infinite only if an
// element is.
INLINE_HOST_DEVICE bool overflows(const Tensor& tensor, double sum) {
    return tensor.param == kFloat64 && sum == HUGE_VAL;
}

// Note down the sum of squares of a tensor, and whether its gradient is finite.
__device__ void tell(const Table& table, int32_t i, const SquareSum& squares) {
    own_squares(table)[i] = squares;
    if (squares.sum - squares.sum != 0) atomicMin(table.offenders + table.device, static_cast<unsigned long long>(i));
}

// The sums of squares of the tiles of large tensors, and of each small tensor.
__global__ void __launch_bounds__(kThreads, kLeastBlocks) square_tiles(const __grid_constant__ Table table) {
    const int lane = threadIdx.x % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
    int64_t tile = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    for (; tile < table.tiles; tile += warps) {
        const int32_t i = table.owners[tile];
        const Gradient& gradient = table.gradients[i];
        if (gradient.order < 0) continue;
        const Tensor& tensor = table.tensors[i];
        const int64_t begin = (tile - tensor.first_tile) * kTile, rest = tensor.size - begin;
        const Part part{table, gradient, begin, rest < kTile ? rest : kTile};
        const bool is_large = tensor.size > kTile;
        double sum, unit = 1;
        if (tensor.param == kFloat64) {
            const Flush<double> mode;
            sum = sum_of_doubles(lane, part, 1);
            if (!is_large && overflows(tensor, __shfl_sync(0xffffffff, sum, 0))) {
                unit = kLargeUnit;
                sum = sum_of_doubles(lane, part, 1 / kLargeUnit);
            }
        } else {
            const Flush<float> mode;
            sum = sum_of_floats(lane, part);
        }
        if (lane != 0) continue;
        if (is_large)
            table.sums[tile] = sum;
        else
            tell(table, i, {sum, unit});
    }
}

// The sum of n sums, by a block of threads, in the order of `total` in norm.h. The sums are overwritten, and so is
// `room`, which holds a number for each block of sums.
__device__ double add_levels(double* sums, double* room, int64_t n) {
    const Flush<double> mode;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    while (n > 1) {
        const int64_t blocks = blocks_of(n);
        for (int64_t b = warp; b < blocks; b += warps) {
            const int64_t rest = n - b * kBlock;
            const double* block = sums + b * kBlock;
            const double sum =
                warp_sum<false, 8>(lane, rest < kBlock ? rest : kBlock, [=](int64_t k) { return block[k]; });
            if (lane == 0) room[b] = sum;
        }
        __syncthreads();
        double* const added = room;
        room = sums;
        sums = added;
        n = blocks;
    }
    return n ? sums[0] : 0;
}

__global__ void __launch_bounds__(kManyThreads, 1) add_tiles(const __grid_constant__ Table table) {
    const int32_t i = table.large[blockIdx.x];
    const Gradient& gradient = table.gradients[i];
    if (gradient.order < 0) return;
    const Tensor& tensor = table.tensors[i];
    const int64_t tiles = blocks_of(tensor.size);
    double* const sums = table.sums + tensor.first_tile;
    double* const room = table.sums_of_sums + tensor.first_tile;
    SquareSum squares = {add_levels(sums, room, tiles), 1};
    if (overflows(tensor, squares.sum)) {
        const Flush<double> mode;
        __syncthreads();  // until every thread has read the sum
        for (int64_t tile = threadIdx.x / kWarp; tile < tiles; tile += kManyThreads / kWarp) {
            const int64_t begin = tile * kTile, rest = tensor.size - begin;
            const int lane = threadIdx.x % kWarp;
            const double sum =
                sum_of_doubles(lane, {table, gradient, begin, rest < kTile ? rest : kTile}, 1 / kLargeUnit);
            if (lane == 0) sums[tile] = sum;
        }
        __syncthreads();
        squares = {add_levels(sums, room, tiles), kLargeUnit};
    }
    if (threadIdx.x == 0) tell(table, i, squares);
}

INLINE_HOST_DEVICE const Number& grad_scale_of(const Table& table, int32_t i) {
    static_assert(offsetof(Around::Hyper, grad_scale) == 0);
    return hypers_of(table, i)[table.own_hyper_count];
}

// The norm of all gradients, and the first gradient that is not finite, by one block of threads.
__global__ void __launch_bounds__(kManyThreads, 1)
    measure(const __grid_constant__ Table table, const __grid_constant__ Mode how, Finding* found) {
    __shared__ double each[kManyThreads];
    const Flush<double> mode;
    double largest = 0;
    for (int32_t i = threadIdx.x; i < table.count; i += kManyThreads)
        if (table.gradients[i].order >= 0) largest = larger(largest, magnitude(value_of(grad_scale_of(table, i))));
    each[threadIdx.x] = largest;
    __syncthreads();
    for (unsigned half = kManyThreads / 2; half; half /= 2) {
        if (threadIdx.x < half) each[threadIdx.x] = larger(each[threadIdx.x], each[threadIdx.x + half]);
        __syncthreads();
    }
    largest = each[0];
    auto add_shares = [&](double unit) {
        __syncthreads();
        for (int32_t i = threadIdx.x; i < table.count; i += kManyThreads) {
            const int32_t order = table.gradients[i].order;
            if (order < 0) continue;
            const SquareSum& squares = table.squares[static_cast<int64_t>(table.tensors[i].device) * table.count + i];
            table.shares[order] = Around::share(value_of(grad_scale_of(table, i)), largest, squares, unit);
        }
        __syncthreads();
        return SquareSum{add_levels(table.shares, table.shares + table.count, how.gradients), unit};
    };
    SquareSum all = add_shares(1);
    if (all.sum == HUGE_VAL) all = add_shares(kLargeUnit);
    if (threadIdx.x != 0) return;
    found->norm = Around::norm(all, largest * scale_of(how));
    found->update_norm = kUnmeasured;
    uint64_t offender = kNobody;
    for (int32_t d = 0; d < table.devices; ++d)
        if (table.offenders[d] < offender) offender = table.offenders[d];
    found->offender = how.skips_nonfinite ? static_cast<int64_t>(offender) : kNobody;
}

__global__ void __launch_bounds__(kManyThreads, 1) add_updates(const __grid_constant__ Table table) {
    const int32_t i = table.large[blockIdx.x];
    if (table.gradients[i].order < 0) return;
    const Tensor& tensor = table.tensors[i];
    const double sum =
        add_levels(table.sums + tensor.first_tile, table.sums_of_sums + tensor.first_tile, blocks_of(tensor.size));
    if (threadIdx.x == 0) own_squares(table)[i].sum = sum;
}

// The norm of what the step has subtracted from all parameters, by one block of threads.
__global__ void __launch_bounds__(kManyThreads, 1)
    measure_updates(const __grid_constant__ Table table, const __grid_constant__ Mode how, Finding* found) {
    const Flush<double> mode;
    for (int32_t i = threadIdx.x; i < table.count; i += kManyThreads) {
        const int32_t order = table.gradients[i].order;
        if (order < 0) continue;
        const Tensor& tensor = table.tensors[i];
        table.shares[order] = table.squares[static_cast<int64_t>(tensor.device) * table.count + i].sum;
    }
    __syncthreads();
    const double sum = add_levels(table.shares, table.shares + table.count, how.gradients);
    if (threadIdx.x != 0) return;
    if (!how.measures) {
        found->norm = kUnmeasured;
        found->offender = kNobody;
    }
    found->update_norm = found->offender == kNobody && value_of(how.skip) == 0 ? root(sum) : 0;
}

INLINE_HOST_DEVICE bool is_averaged(const Tensor& tensor, const Around::Hyper& around) {
    return tensor.arrays[kParam] && tensor.arrays[kAverage] && around.averages();
}

// Prepare the update of a tensor by each thread. derive(hyperparameters, clock, derived) is that of the rule, which has
// kOwn hyperparameters at most, and `own` in fact.
template <int kOwn, class Derive>
__device__ inline void prepare_tensors(const Table& table, const Mode& how, const Finding* found, int own,
                                       Derive derive) {
    const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) table.offenders[table.device] = kNobody;  // for the next step
    if (i >= table.count) return;
    const Flush<double> mode;
    constexpr int kCount = kOwn + words(Around::hypers);
    __shared__ double rooms[kFewThreads][kCount];  // the hyperparameters, too many for registers
    double* const hypers = rooms[threadIdx.x];
    const Number* numbers = hypers_of(table, i);
    for (int j = 0; j < own + words(Around::hypers); ++j) hypers[j] = value_of(numbers[j]);
    read_anew();
    const auto& around = *reinterpret_cast<const Around::Hyper*>(hypers + own);

    Prepared& prepared = table.prepared[i];
    prepared.skipped = value_of(how.skip) != 0 || (how.skips_nonfinite && found->offender != kNobody);
    prepared.derived.zero_grad = around.zero_grad != 0;
    prepared.averaged = table.gradients[i].order < 0 && !prepared.skipped && is_averaged(table.tensors[i], around);
    if (prepared.skipped || (table.gradients[i].order < 0 && !prepared.averaged)) return;
    if (prepared.averaged)
        Around::derive(around, 0, table.clocks[i], prepared.derived);
    else
        derive(hypers, table.clocks[i], prepared.derived);
    if (!prepared.averaged && table.tensors[i].device == table.device) show(table.clocks[i], table.tensors[i]);
    read_anew();
    prepared.noise = prepared.derived.stochastic
                         ? noise_key(prepared.derived.seed, table.clocks[i].t, table.tensors[i].noise_id)
                         : 0;
    if (prepared.averaged) return;
    const double step_scale = scale_of(how);
    const double scale = how.measures ? Around::scale(around, step_scale, own_squares(table)[i], found->norm)
                                      : Around::scale(around, step_scale);
    prepared.scale64 = scale;
    prepared.scale32 = static_cast<float>(scale);
}

template <class Rule>
__global__ void __launch_bounds__(kFewThreads, 8)
    prepare(const __grid_constant__ Table table, const __grid_constant__ Mode how, const Finding* found) {
    constexpr int kOwn = words(Rule::hypers);
    prepare_tensors<kOwn>(table, how, found, kOwn,
                          [](const double* hypers, Clock& clock, Derived& derived)
                              INLINE_LAMBDA { derive<Rule>(hypers, clock, derived); });
}

__global__ void __launch_bounds__(kFewThreads, 8)
    prepare_program(const __grid_constant__ Table table, const __grid_constant__ Mode how, const Finding* found,
                    const __grid_constant__ Numbers numbers, bool has_lr) {
    prepare_tensors<kMaxOwnHypers>(table, how, found, numbers.hyper_count,
                                   [&](const double* hypers, Clock& clock, Derived& derived)
                                       INLINE_LAMBDA { derive(numbers, has_lr, hypers, clock, derived); });
}

#define PREPARE(Rule) prepare<Rule>,

}  // namespace

namespace fusedstep::cuda {

const Prepare preparations[] = {FUSEDSTEP_RULES(PREPARE) FUSEDSTEP_LIMITS(PREPARE)};
const PrepareMade prepare_made = prepare_program;
const Common common = {own_tiles, square_tiles, add_tiles, measure, add_updates, measure_updates};
const Deliver deliver = unpack;

}  // namespace fusedstep::cuda
