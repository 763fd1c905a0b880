#include "rules/info.h"

#include "element/scalars.h"
#include "rules/all.h"

namespace fusedstep {
namespace {

template <class Rule>
constexpr RuleInfo info_of(int id) {
    constexpr int own = words(Rule::hypers);
    return {id,
            Rule::name,
            Rule::states,
            Rule::hypers,
            memory_names<Rule>(),
            words(Rule::states),
            words(memory_names<Rule>()),
            own + words(Around::hypers),
            own,
            kCounts<Rule> || kRemembers<Rule>,
            [](const RuleInfo&, const double* hypers, Clock& clock, Derived& derived) {
                derive<Rule>(hypers, clock, derived);
            },
            nullptr};
}

enum Ids {
#define ID(Rule) k##Rule,
    FUSEDSTEP_RULES(ID) FUSEDSTEP_LIMITS(ID)
#undef ID
};

#define INFO(Rule) info_of<Rule>(k##Rule),
constexpr RuleInfo kInfos[] = {FUSEDSTEP_RULES(INFO) FUSEDSTEP_LIMITS(INFO)};
#undef INFO

}  // namespace

std::span<const RuleInfo> rule_infos() {
    return kInfos;
}

const char* names_around() {
    return Around::hypers;
}

}  // namespace fusedstep
