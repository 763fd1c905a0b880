// The table of hyperparameters of a step, and the scalars that follow from it: for the host side of every engine.
#pragma once

#include <span>
#include <vector>

#include "element/around.h"
#include "rules/info.h"

namespace {

class Rows {
public:
    explicit Rows(const RuleInfo& rule) : rule_(&rule) {}
    // Serve another rule from now on, in the memory that is allocated already.
    void become(const RuleInfo& rule) { rule_ = &rule; }

    // Take a table of hyperparameters. A number on a device counts as 1, so that its option is switched on.
    void set(std::span<const Number> table) {
        values_.clear();
        for (const Number& number : table) values_.push_back(number.value);
        rows_.clear();
        measures_ = averages_ = false;
        variant_ = kPlain;
        for (size_t begin = 0; begin < values_.size(); begin += rule_->hyper_count) {
            const double* hypers = values_.data() + begin;
            auto around = reinterpret_cast<const Around::Hyper*>(hypers + rule_->own_hyper_count);
            rows_.push_back({hypers, around, nullptr, {}, {}});
            measures_ = measures_ || around->measures();
            averages_ = averages_ || around->averages();
            const Variant variant = Around::variant(*around);
            variant_ = variant > variant_ ? variant : variant_;
        }
    }

    // What surrounds the rule for a tensor.
    const Around::Hyper& around(const Slot& slot) const { return *rows_[slot.row].around; }
    // Whether a row clips by a norm.
    bool measures() const { return measures_; }
    // Whether a tensor without a gradient is averaged all the same.
    bool averages(const Slot& slot) const {
        return averages_ && !slot.has_grad && slot.arrays[kParam] && slot.arrays[kAverage] && around(slot).averages();
    }
    // The variant with all that any row needs around the rule.
    Variant variant() const { return variant_; }

    // Have room for the scalars of this many tensors, so that `advance` cannot fail.
    void reserve(size_t tensors) { derived_.reserve(tensors); }
    // Begin a step, in which no tensor has been advanced yet.
    void begin() {
        derived_.clear();
        for (Row& row : rows_) row.derived = nullptr;
    }
    // Advance the clock of a tensor, and return the scalars of its update, in IEEE mode. Tensors of one row with equal
    // clocks share their scalars: usually all tensors do.
    const Derived& advance(const Slot& slot) {
        Row& row = rows_[slot.row];
        Clock& clock = *slot.clock;
        if (row.derived && equal(row.before, clock)) {
            copy(row.after, clock);
        } else {
            row.before = clock;
            row.derived = &derived_.emplace_back();
            rule_->derive(*rule_, row.hypers, clock, *row.derived);
            row.after = clock;
        }
        return *row.derived;
    }

    // The scalars of the average of a tensor without a gradient, in IEEE mode. Its clock does not advance.
    const Derived& average(const Slot& slot) {
        Derived& derived = derived_.emplace_back();
        Around::derive(around(slot), 0, *slot.clock, derived);
        return derived;
    }

private:
    // Clocks are compared and copied without the memory that a rule does not have: a step with many small tensors is
    // made of little else.
    bool equal(const Clock& a, const Clock& b) const {
        bool equal = a.t == b.t && a.averaged == b.averaged;
        for (int i = 0; i < rule_->memory_count; ++i) equal = equal && a.memory[i] == b.memory[i];
        return equal;
    }
    void copy(const Clock& from, Clock& to) const {
        to.t = from.t;
        to.averaged = from.averaged;
        for (int i = 0; i < rule_->memory_count; ++i) to.memory[i] = from.memory[i];
    }

    struct Row {
        const double* hypers;
        const Around::Hyper* around;
        Derived* derived;     // scalars of the last tensor that was advanced, or null
        Clock before, after;  // the clock of that tensor, around its update
    };

    const RuleInfo* rule_;
    std::vector<double> values_;
    std::vector<Row> rows_;
    std::vector<Derived> derived_;
    bool measures_ = false, averages_ = false;
    Variant variant_ = kPlain;
};

}  // namespace
