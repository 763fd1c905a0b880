#include "engines/cpu/pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <deque>
#include <system_error>
#include <thread>

namespace fusedstep {
namespace {

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    asm volatile("yield");
#endif
}

// Wait until `word` is no longer `value`: spinning for some tens of microseconds, since the next step often follows at
// once, then asleep. 32 bits map straight to a futex.
void await_change(const std::atomic<uint32_t>& word, uint32_t value) {
    for (int i = 0; i < 1000; ++i) {
        if (word.load(std::memory_order_acquire) != value) return;
        pause();
    }
    while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
}

class Pool {
public:
    void run(int parts, void (*work)(void*, int), void* context) {
        if (busy_.exchange(true, std::memory_order_acquire)) {
            for (int part = 0; part < parts; ++part) work(context, part);
            return;
        }
        int helpers = grow(parts - 1);
        work_ = work;
        context_ = context;
        pending_.store(helpers, std::memory_order_relaxed);
        for (int i = 0; i < helpers; ++i) {
            tickets_[i].fetch_add(1, std::memory_order_release);
            tickets_[i].notify_one();
        }
        work(context, 0);
        for (int part = helpers + 1; part < parts; ++part) work(context, part);
        // A worker that has not begun may sleep long, or wait for the core of this thread: this thread does its part.
        for (int i = 0; i < helpers; ++i) {
            if (!claim(tickets_[i])) continue;
            work(context, i + 1);
            pending_.fetch_sub(1, std::memory_order_acq_rel);
        }
        for (uint32_t left; (left = pending_.load(std::memory_order_acquire));) await_change(pending_, left);
        busy_.store(false, std::memory_order_release);
    }

private:
    // Have at least `count` workers, or as many as the system grants.
    int grow(int count) {
        sigset_t all, before;
        sigfillset(&all);
        while (static_cast<int>(tickets_.size()) < count) {
            tickets_.emplace_back(1);
            int part = static_cast<int>(tickets_.size());
            pthread_sigmask(SIG_SETMASK, &all, &before);  // signals belong to the caller's threads
            try {
                std::thread(&Pool::serve, this, part, std::ref(tickets_.back())).detach();
            } catch (const std::system_error&) {
                tickets_.pop_back();
                count = part - 1;
            }
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
        }
        return count;
    }

    // An even ticket offers a part of the work, an odd ticket is taken. The thread that makes it odd does the part.
    static bool claim(std::atomic<uint32_t>& ticket) {
        uint32_t offer = ticket.load(std::memory_order_acquire);
        return offer % 2 == 0 && ticket.compare_exchange_strong(offer, offer + 1, std::memory_order_acq_rel);
    }

    // The loop of a worker: do the part of the work that its ticket offers, and wait for the next offer.
    void serve(int part, std::atomic<uint32_t>& ticket) {
        for (;;) {
            if (claim(ticket)) {
                work_(context_, part);
                if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
            }
            uint32_t seen = ticket.load(std::memory_order_acquire);
            if (seen % 2) await_change(ticket, seen);
        }
    }

    std::atomic<bool> busy_{false};
    std::atomic<uint32_t> pending_{0};
    void (*work_)(void*, int) = nullptr;
    void* context_ = nullptr;
    std::deque<std::atomic<uint32_t>> tickets_;  // a deque, because a worker keeps a reference to its ticket
};

// The pool is never destroyed: its workers sleep until the process ends. A forked child has none of them and starts
// a pool of its own when it needs one.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
    static const int forks = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    static_cast<void>(forks);
    Pool* current = pool.load(std::memory_order_acquire);
    if (!current) {
        Pool* fresh = new Pool;
        if (pool.compare_exchange_strong(current, fresh))
            current = fresh;
        else
            delete fresh;
    }
    return *current;
}

}  // namespace

void run_parallel(int parts, void (*work)(void* context, int part), void* context) {
    the_pool().run(parts, work, context);
}

}  // namespace fusedstep
