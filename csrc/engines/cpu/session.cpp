// The engine for host memory: a step measures the gradients where that is asked for, derives the scalars, and runs the
// kernels on all tensors.
#include <algorithm>
#include <cmath>
#include <vector>

#include "element/float_mode.h"
#include "element/norm.h"
#include "element/philox.h"
#include "element/scalars.h"
#include "engine.h"
#include "engines/cpu/dispatch.h"
#include "engines/cpu/routines.h"
#include "programs/made.h"
#include "rules/all.h"
#include "rules/rows.h"

namespace fusedstep {
namespace {

class HostSession final : public Session {
public:
    explicit HostSession(const RuleInfo& rule) : rule_(&rule), rows_(rule) {}

    // Make one step by another rule, in the memory that is allocated already.
    void run_once(const RuleInfo& rule, std::span<const Slot> slots, std::span<const Number> hypers,
                  const Request& request) {
        rule_ = &rule;
        rows_.become(rule);
        set_hypers(hypers);
        set_tensors(slots);
        run(request);
    }

    void set_tensors(std::span<const Slot> slots) override {
        slots_ = slots;
        set_gradients();
    }

    void set_gradients() override {
        tasks_.clear();
        tasks_.reserve(slots_.size());
        averages_.reserve(slots_.size());
        rows_.reserve(slots_.size());
        bytes_ = tile_bytes_ = 0;
        for (const Slot& slot : slots_) {
            if (!slot.has_grad) continue;
            Types types = slot.types;
            const auto traffic =
                static_cast<int32_t>(2 * kItemSize[types.param] + grad_bytes(slot) +
                                     2 * rule_->state_count * kItemSize[types.state] + 2 * kItemSize[types.master]);
            if (is_gathered(slot)) {
                types.grad = computed_in(types.param);  // what the loop finds in a tile
                tile_bytes_ = std::max(tile_bytes_, tile_bytes(slot));
            }
            tasks_.push_back({&slot, nullptr, 1, 0, loop_of(types), traffic, bytes_});
            bytes_ += slot.size * traffic;
        }
    }

    void set_gradient_addresses() override {}  // a task reads the address in its slot

    void set_hypers(std::span<const Number> table) override { rows_.set(table); }

    Outcome run(const Request& request) override {
        const double grad_scale = request.grad_scale.value / request.loss_scale.value;
        const bool measures = rows_.measures() || request.skips_nonfinite;
        Finding found{kUnmeasured, kNobody, kUnmeasured};
        const bool tells = measures || request.measures_updates;
        if (measures) found = measure(grad_scale, request);
        if (found.offender != kNobody || request.skip.value != 0) {
            if (request.measures_updates) found.update_norm = 0;
            for (const Task& task : tasks_)
                if (rows_.around(*task.slot).zero_grad != 0) zero_grad(*task.slot, 0, task.slot->size);
            return tells ? Outcome(found) : Done();
        }
        if (tile_bytes_ != 0) tiles_.reserve(tile_bytes_, bytes_);
        make_room_for_sums(request.measures_updates);
        const Kernels& kernels = current_kernels();
        const Routine* const routine = rule_->made ? &routine_for(kernels) : nullptr;
        // From here on nothing fails.
        derive(grad_scale, measures);
        run_tasks(kernels, *rule_, routine, tasks_, bytes_, tile_bytes_ != 0 ? &tiles_ : nullptr);
        if (!averages_.empty()) run_tasks(kernels, *rule_, routine, averages_, bytes_of_averages_);
        if (request.measures_updates) found.update_norm = norm_of_updates();
        return tells ? Outcome(found) : Done();
    }

    int64_t traffic() const override { return bytes_; }

    std::span<const double> squares_of_updates() const override { return sums_; }

private:
    // The routine of a rule that was made at run time. It is kept while nothing is asked for that would change it.
    const Routine& routine_for(const Kernels& kernels) {
        const Asked now{rule_->made, &kernels, uses_code()};
        if (!(now == asked_)) {
            routine_ = routine_of(*rule_->made, kernels);
            asked_ = now;
        }
        return routine_;
    }

    // Read the gradients: the sum of squares of each.
    std::vector<SquareSum> sums_of_gradients() const {
        std::vector<const Slot*> slots;
        int64_t blocks = 0;
        for (const Task& task : tasks_) {
            slots.push_back(task.slot);
            blocks += blocks_of(task.slot->size);
        }
        std::vector<double> block_sums(blocks);
        sum_blocks(slots, block_sums.data());
        FloatMode mode;
        mode.ieee();
        std::vector<SquareSum> sums;
        double* next = block_sums.data();
        for (const Slot* slot : slots) {
            const int64_t count = blocks_of(slot->size);
            sums.push_back({total(next, count), 1});
            if (std::isinf(sums.back().sum) && slot->types.param == kFloat64) {
                sum_blocks_in_large_unit(*slot, next);
                sums.back() = {total(next, count), kLargeUnit};
            }
            next += count;
        }
        return sums;
    }

    // Measure the gradients before the step, unless that has been done, and set the factors that clip.
    Finding measure(double grad_scale, const Request& request) {
        std::vector<const Slot*> slots;
        for (const Task& task : tasks_) slots.push_back(task.slot);
        std::vector<SquareSum> sums;
        if (request.sums.empty())
            sums = sums_of_gradients();
        else
            for (const Slot* slot : slots) sums.push_back(request.sums[slot - slots_.data()]);

        FloatMode mode;
        mode.ieee();
        double largest = 0;
        for (const Slot* slot : slots) largest = larger(largest, magnitude(rows_.around(*slot).grad_scale));
        auto add_shares = [&](double unit) {
            std::vector<double> shares;
            for (size_t i = 0; i < tasks_.size(); ++i)
                shares.push_back(Around::share(rows_.around(*slots[i]).grad_scale, largest, sums[i], unit));
            return SquareSum{total(shares.data(), static_cast<int64_t>(shares.size())), unit};
        };
        SquareSum all = add_shares(1);
        if (std::isinf(all.sum)) all = add_shares(kLargeUnit);
        Finding found{Around::norm(all, largest * grad_scale), kNobody, kUnmeasured};
        for (size_t i = 0; i < tasks_.size(); ++i) {
            if (request.skips_nonfinite && found.offender == kNobody && !std::isfinite(sums[i].sum))
                found.offender = slots[i] - slots_.data();
            tasks_[i].scale = Around::scale(rows_.around(*slots[i]), grad_scale, sums[i], found.norm);
        }
        return found;
    }

    // Let the tasks add up the squares of their updates, or not.
    void make_room_for_sums(bool measures) {
        if (!measures && sums_of_tensors_.empty()) return;
        int64_t blocks = 0;
        for (const Task& task : tasks_) blocks += measures ? blocks_of(task.slot->size) : 0;
        sums_.resize(blocks);
        copy_of_sums_.resize(blocks);
        sums_of_tensors_.resize(measures ? tasks_.size() : 0);
        double* next = sums_.data();
        for (Task& task : tasks_) {
            task.sums = measures ? next : nullptr;
            next += measures ? blocks_of(task.slot->size) : 0;
        }
    }

    // The norm of what the step has subtracted from the parameters.
    double norm_of_updates() {
        FloatMode mode;
        mode.ieee();
        std::vector<double>& copy = copy_of_sums_;  // the sums themselves may still be asked for
        copy = sums_;
        for (size_t i = 0; i < tasks_.size(); ++i)
            sums_of_tensors_[i] = total(copy.data() + (tasks_[i].sums - sums_.data()), blocks_of(tasks_[i].slot->size));
        return root(total(sums_of_tensors_.data(), static_cast<int64_t>(tasks_.size())));
    }

    // Advance the clocks, and derive the scalars of each tensor.
    void derive(double grad_scale, bool measured) {
        FloatMode mode;
        mode.ieee();
        rows_.begin();
        for (Task& task : tasks_) {
            const Slot& slot = *task.slot;
            const Derived& derived = rows_.advance(slot);
            task.derived = &derived;
            show(*slot.clock, slot);
            if (derived.stochastic) task.noise = noise_key(derived.seed, slot.clock->t, slot.noise_id);
            if (!measured) task.scale = Around::scale(rows_.around(slot), grad_scale);
        }
        averages_.clear();
        bytes_of_averages_ = 0;
        if (tasks_.size() == slots_.size()) return;  // all have gradients: nothing is averaged without one
        for (const Slot& slot : slots_) {
            if (!rows_.averages(slot)) continue;
            const Derived& derived = rows_.average(slot);
            const Types& types = slot.types;
            const auto traffic =
                static_cast<int32_t>(kItemSize[types.param] + kItemSize[types.master] + 2 * kItemSize[types.state]);
            const uint64_t noise = derived.stochastic ? noise_key(derived.seed, slot.clock->t, slot.noise_id) : 0;
            averages_.push_back({&slot, &derived, 1, noise, kGeneric, traffic, bytes_of_averages_});
            bytes_of_averages_ += slot.size * traffic;
        }
    }

    struct Asked {
        const Made* made = nullptr;
        const Kernels* kernels = nullptr;
        bool uses_code = false;

        bool operator==(const Asked&) const = default;
    };

    const RuleInfo* rule_;
    Asked asked_;
    Routine routine_{};
    std::span<const Slot> slots_;
    std::vector<Task> tasks_;     // one for each slot with a gradient
    std::vector<Task> averages_;  // in a step, one for each slot without a gradient that is averaged
    int64_t bytes_of_averages_ = 0;
    Rows rows_;
    int64_t bytes_ = 0;
    Tiles tiles_;
    int64_t tile_bytes_ = 0;  // of the largest tile that the tasks need, if any
    // Of squares of what is subtracted, where that is measured.
    std::vector<double> sums_, sums_of_tensors_, copy_of_sums_;
};

std::unique_ptr<Session> open(const RuleInfo& rule, std::span<const int>) {
    return std::make_unique<HostSession>(rule);
}

void run_once(const RuleInfo& rule, std::span<const Slot> slots, std::span<const Number> hypers, const Request& request,
              int) {
    thread_local HostSession session(rule);  // kept: the allocations of a new one take as long as a small step
    session.run_once(rule, slots, hypers, request);
}

}  // namespace

const Engine& host_engine() {
    static constexpr Engine engine = {
        layout_of({FUSEDSTEP_RULES(FUSEDSTEP_NAMES) FUSEDSTEP_STEP_NAMES Around::hypers}, sizeof(Made)),
        open,
        run_once,
        {}};
    return engine;
}

void sum_blocks(const Slot& slot, double unit, double* sums) {
    if (unit == kLargeUnit) return sum_blocks_in_large_unit(slot, sums);
    const Slot* const slots[] = {&slot};
    sum_blocks(slots, sums);
}

}  // namespace fusedstep
