// Loops over arrays that are converted, in runs of whole vectors.
#pragma once

#include <string.h>

#include "engines/cpu/convert.h"
#include "engines/cpu/kernels.h"

namespace {

// The place in each array of a tensor that the loop has come to.
struct Cursor {
    char* at[kRoles];
};

// The random bits of the elements of a tile, by role. The last vector of a tile may reach beyond it.
struct Noise {
    alignas(64) uint16_t bits[kRoles][kNoiseTile + kWidth];
};

// Cut the elements [begin, end) of a tensor into runs of whole vectors, of at most `most` elements, and call
// compute(cursor, noise, number of the first element in the noise, elements) for each. The elements after the last
// whole vector are copied into vectors of their own, and back. each(f) calls f(role, bytes per element, whether it is
// written) for each array.
template <class Each, class Compute>
INLINE_HOST_DEVICE void each_run(const Types types, const Task& task, bool stochastic, int64_t begin, int64_t end,
                                 int64_t most, Each each, Compute compute) {
    const Slot& slot = *task.slot;
    Noise noise;
    for (int64_t i = begin; i < end;) {
        int64_t first = 0, stop = end - i > most ? i + most : end;
        if (stochastic) {
            const int64_t tile = (slot.origin + i) / kNoiseTile;
            first = tile * kNoiseTile - slot.origin;
            stop = first + kNoiseTile < stop ? first + kNoiseTile : stop;
            each([&](int role, int64_t, bool written) {
                const Type type = role == kParam ? types.param : types.state;
                const bool has_master = role == kMaster || (role == kParam && types.has_master());
                if (written && !has_master && contains(kNarrow, type))
                    fill_noise(task.noise, noise_array(role), tile, noise.bits[role]);
            });
        }
        const bool whole = stop - i >= kWidth;
        const int64_t rest = (stop - i) % kWidth, n = whole ? stop - i - rest : rest;
        alignas(64) char copies[kRoles][kWidth * sizeof(float)];
        Cursor here = {};
        each([&](int role, int64_t width, bool) {
            here.at[role] = static_cast<char*>(slot.arrays[role]) + i * width;
            if (!whole) {
                memset(copies[role], 0, sizeof(copies[role]));
                memcpy(copies[role], here.at[role], n * width);
                here.at[role] = copies[role];
            }
        });
        compute(here, stochastic ? &noise : nullptr, i - first, whole ? n : kWidth);
        each([&](int role, int64_t width, bool written) {
            if (!whole && written) memcpy(static_cast<char*>(slot.arrays[role]) + i * width, copies[role], n * width);
        });
        i += n;
    }
}

}  // namespace
