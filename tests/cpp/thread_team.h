// A team of CPU threads that solves one episode together, as a thread block does on a GPU. ThreadSanitizer sees every
// access of every member, so a missing sync() in core/ is found without a GPU.
#pragma once

#include <barrier>
#include <thread>
#include <vector>

#include "../../csrc/core/team.h"

namespace FX_NAMESPACE {

// What the members of one team share.
struct Meeting {
    explicit Meeting(int n) : size(n), barrier(n), partial(n) {}
    int size;
    std::barrier<> barrier;
    std::vector<double> partial;
};

class ThreadTeam {
  public:
    template <class Real>
    static constexpr int width = 1;
    template <class Real>
    static constexpr int panel = 4;

    // `drop` >= 0: the sync() of that number is left out (by every member: nobody waits for ever).
    ThreadTeam(Meeting& meeting, int rank, long drop = -1) : meeting_(&meeting), rank_(rank), drop_(drop) {}

    int rank() const { return rank_; }
    int size() const { return meeting_->size; }
    void sync() const {
        if (syncs_++ != drop_) meeting_->barrier.arrive_and_wait();
    }
    double sum(double x) const {
        meeting_->partial[rank_] = x;
        meeting_->barrier.arrive_and_wait();
        double total = 0;
        for (double part : meeting_->partial) total += part;
        meeting_->barrier.arrive_and_wait();
        return total;
    }
    long syncs() const { return syncs_; }

  private:
    Meeting* meeting_;
    int rank_;
    long drop_;
    mutable long syncs_ = 0;
};

// work(team) on `n` threads; returns how often each member called sync().
template <class Work>
long together(int n, long drop, const Work& work) {
    Meeting meeting(n);
    std::vector<long> syncs(n);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < n; ++rank) {
        threads.emplace_back([&, rank] {
            const ThreadTeam team(meeting, rank, drop);
            work(team);
            syncs[rank] = team.syncs();
        });
    }
    for (auto& thread : threads) thread.join();
    for (long count : syncs) {
        if (count != syncs[0]) return -1;  // members disagreed on the way they took
    }
    return syncs[0];
}

}  // namespace FX_NAMESPACE
