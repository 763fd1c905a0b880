// What comes before the update on a GPU: tables arrive, gradients are measured, clocks advance and scalars are
// prepared.
#include <cuda_runtime.h>
#include <stddef.h>

#include "element/norm.h"
#include "element/philox.h"
#include "element/scalars.h"
#include "engines/cuda/compiler.h"
#include "engines/cuda/table.h"
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
    return number.at ? *number.at : number.value;
}

// The hyperparameters of a tensor, those of its rule first.
INLINE_HOST_DEVICE const Number* hypers_of(const Table& table, int32_t i) {
    return table.hypers + static_cast<int64_t>(table.gradients[i].row) * table.hyper_count;
}

// The sum of a block by a warp, whose lanes are the lanes of norm.h. Only lane 0 returns the sum.
template <bool kSquare, class Row>
__device__ double warp_sum(int lane, int64_t n, Row row) {
    double sum = 0;
#pragma unroll 8
    for (int64_t k = lane; k < n; k += kWarp) {
        const double value = row(k);
        sum = sum + (kSquare ? value * value : value);
    }
    for (int half = kWarp / 2; half; half /= 2) sum = sum + __shfl_down_sync(0xffffffff, sum, half);
    return sum;
}

template <class Row>
__device__ double sum_of_squares(int lane, int64_t n, Row row) {
    return warp_sum<true>(lane, n, row);
}

INLINE_HOST_DEVICE float widened_at(Type type, const void* array, int64_t i) {
    return with_narrow(type, [=](auto storage) INLINE_LAMBDA {
        return storage.widen(uint32_t(static_cast<const typename decltype(storage)::Word*>(array)[i]));
    });
}

INLINE_HOST_DEVICE double* own_squares(const Table& table) {
    return table.squares + static_cast<int64_t>(table.device) * table.count;
}

// The sum of squares of each tile, and the first gradient that is not finite. The square of a finite double may be
// infinite, so doubles are looked at one by one.
__global__ void square_tiles(const __grid_constant__ Table table) {
    const int lane = threadIdx.x % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
    int64_t tile = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    for (; tile < table.tiles; tile += warps) {
        const int32_t i = table.owners[tile];
        const Gradient gradient = table.gradients[i];
        if (gradient.order < 0) continue;
        const int64_t begin = (tile - table.tensors[i].first_tile) * kTile;
        const int64_t rest = table.tensors[i].size - begin, n = rest < kTile ? rest : kTile;
        double sum;
        bool finite = true;
        if (gradient.type == kFloat64) {
            const Flush<double> mode;
            auto x = static_cast<const double*>(gradient.data) + begin;
            sum = sum_of_squares(lane, n, [=, &finite](int64_t k) {
                finite = finite && x[k] - x[k] == 0;
                return x[k];
            });
        } else {
            const Flush<float> mode;
            if (gradient.type == kFloat32) {
                auto x = static_cast<const float*>(gradient.data) + begin;
                sum = sum_of_squares(lane, n, [=](int64_t k) { return x[k]; });
            } else {
                const Type type = gradient.type;
                sum = sum_of_squares(lane, n, [=](int64_t k) { return widened_at(type, gradient.data, begin + k); });
            }
            finite = lane != 0 || sum - sum == 0;
        }
        if (lane == 0) (table.tensors[i].size > kTile ? table.sums[tile] : own_squares(table)[i]) = sum;
        if (!finite) atomicMin(table.offenders + table.device, static_cast<unsigned long long>(i));
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
                warp_sum<false>(lane, rest < kBlock ? rest : kBlock, [=](int64_t k) { return block[k]; });
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
    if (table.gradients[i].order < 0) return;
    const Tensor& tensor = table.tensors[i];
    const double sum =
        add_levels(table.sums + tensor.first_tile, table.sums_of_sums + tensor.first_tile, blocks_of(tensor.size));
    if (threadIdx.x == 0) own_squares(table)[i] = sum;
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
    for (int32_t i = threadIdx.x; i < table.count; i += kManyThreads) {
        const int32_t order = table.gradients[i].order;
        if (order < 0) continue;
        const double squares = table.squares[static_cast<int64_t>(table.tensors[i].device) * table.count + i];
        table.shares[order] = Around::share(value_of(grad_scale_of(table, i)), largest, squares);
    }
    __syncthreads();
    const double sum = add_levels(table.shares, table.shares + table.count, how.gradients);
    if (threadIdx.x != 0) return;
    found->norm = Around::norm(sum, largest * value_of(how.grad_scale));
    uint64_t offender = kNobody;
    for (int32_t d = 0; d < table.devices; ++d)
        if (table.offenders[d] < offender) offender = table.offenders[d];
    found->offender = how.skips_nonfinite ? static_cast<int64_t>(offender) : kNobody;
}

template <class Rule>
__global__ void __launch_bounds__(kFewThreads, 8)
    prepare(const __grid_constant__ Table table, const __grid_constant__ Mode how, const Finding* found) {
    const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) table.offenders[table.device] = kNobody;  // for the next step
    if (i >= table.count || table.gradients[i].order < 0) return;
    const Flush<double> mode;
    constexpr int kCount = words(Rule::hypers) + words(Around::hypers);
    __shared__ double rooms[kFewThreads][kCount];  // the hyperparameters, too many for registers
    double* const hypers = rooms[threadIdx.x];
    const Number* numbers = hypers_of(table, i);
    for (int j = 0; j < kCount; ++j) hypers[j] = value_of(numbers[j]);
    const auto& around = *reinterpret_cast<const Around::Hyper*>(hypers + words(Rule::hypers));

    Prepared& prepared = table.prepared[i];
    prepared.skipped = how.skips_nonfinite && found->offender != kNobody;
    prepared.derived.zero_grad = around.zero_grad != 0;
    if (prepared.skipped) return;
    derive<Rule>(hypers, table.clocks[i], prepared.derived);
    read_anew();
    const double step_scale = value_of(how.grad_scale);
    const double scale = how.measures ? Around::scale(around, step_scale, own_squares(table)[i], found->norm)
                                      : Around::scale(around, step_scale);
    prepared.scale64 = scale;
    prepared.scale32 = static_cast<float>(scale);
    prepared.noise = prepared.derived.stochastic
                         ? noise_key(prepared.derived.seed, table.clocks[i].t, table.tensors[i].noise_id)
                         : 0;
}

#define PREPARE(Rule) prepare<Rule>,

}  // namespace

namespace fusedstep::cuda {

const Prepare preparations[] = {FUSEDSTEP_RULES(PREPARE) FUSEDSTEP_LIMITS(PREPARE)};
const Common common = {own_tiles, square_tiles, add_tiles, measure};
const Deliver deliver = unpack;

}  // namespace fusedstep::cuda
