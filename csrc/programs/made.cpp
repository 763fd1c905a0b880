#include "programs/made.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string_view>

#include "programs/numbers.h"

namespace fusedstep {
namespace {

std::mutex mutex;
std::deque<Made>& made_rules() {  // a deque, since nobody may move what a session refers to
    static std::deque<Made>& rules = *new std::deque<Made>;
    return rules;
}

void derive_made(const RuleInfo& rule, const double* hypers, Clock& clock, Derived& derived) {
    derive(rule.made->program.numbers, rule.made->has_lr, hypers, clock, derived);
}

bool uses(const Numbers& numbers, int16_t number) {
    const auto operations = std::span(numbers.operations, numbers.operation_count);
    return std::ranges::count(std::span(numbers.scalars, numbers.scalar_count), number) > 0 ||
           std::ranges::any_of(operations, [=](const Operation& operation) {
               const auto operands = std::span(operation.operands, std::string_view(operands_of(operation.op)).size());
               return std::ranges::count(operands, number) > 0;
           });
}

}  // namespace

const RuleInfo& define(std::string name, std::string states, std::string hypers, std::string memory,
                       const Program& program) {
    check(program);
    const Numbers& numbers = program.numbers;
    if (words(states.c_str()) != program.elements.state_count || words(hypers.c_str()) != numbers.hyper_count ||
        words(memory.c_str()) != numbers.memory_count)
        throw std::invalid_argument("define: expected a name for each state, hyperparameter and memory");
    Made made{std::move(name), std::move(states), std::move(hypers), std::move(memory), program, false, {}, {}};
    made.has_lr = made.hypers == "lr" || made.hypers.starts_with("lr ");
    made.codes[static_cast<int>(Ending::kParam)] = assemble(program, Ending::kParam);
    made.codes[static_cast<int>(Ending::kUpdate)] = assemble(program, Ending::kUpdate);

    const std::lock_guard lock(mutex);
    auto& rules = made_rules();
    rules.push_back(std::move(made));
    Made& kept = rules.back();
    kept.info = {static_cast<int>(rule_infos().size() + rules.size()) - 1,
                 kept.name.c_str(),
                 kept.states.c_str(),
                 kept.hypers.c_str(),
                 kept.memory.c_str(),
                 program.elements.state_count,
                 numbers.memory_count,
                 numbers.hyper_count + words(names_around()),
                 numbers.hyper_count,
                 numbers.memory_count > 0 || uses(numbers, static_cast<int16_t>(numbers.hyper_count)),
                 derive_made,
                 &kept};
    return kept.info;
}

const RuleInfo& rule_of(int id) {
    const auto listed = rule_infos();
    if (id >= 0 && static_cast<size_t>(id) < listed.size()) return listed[id];
    const std::lock_guard lock(mutex);
    const auto& rules = made_rules();
    const auto place = static_cast<size_t>(id) - listed.size();
    if (id < 0 || place >= rules.size()) throw std::out_of_range("no rule has this id");
    return rules[place].info;
}

}  // namespace fusedstep
