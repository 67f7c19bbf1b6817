// The Hessian's inverse, were the losses' curvature the same for all images: M = (l2·I + κ K)^-1, κ that curvature over
// the number of images. Since κ K M = I - l2·M, one product with M tells M g and K M g both.
#pragma once

#include "inverse.h"

namespace FX_NAMESPACE {

template <class Team, class Real>
class Preconditioner {
    using V = typename Lanes<Real, Team::template width<Real>>::V;

  public:
    static constexpr int fewest =
        64;  // images: of fewer K has few directions, and plain iterations are next to nothing

    Preconditioner() = default;
    FX_FUNCTION Preconditioner(Workspace& memory, int m, int stride) : inverse_(memory, m) {
        M_ = {memory.take<Real>(static_cast<std::int64_t>(m) * stride), m, stride};
        l2_ = memory.take<Real>(stride);
        over_curvature_ = memory.take<Real>(stride);
    }

    // false, and M is not to be used, where l2·I + κ K is not positive definite for K as it is rounded.
    FX_BODY bool make(const Team& team, const Panels<Team, Real>& K, double l2, double curvature) {
        const int m = K.rows;
        each_row(team, m, [=, this](int i) {
            for (int j = 0; j <= i; ++j) inverse_.at(i, j) = curvature * *K.at(i, j) + (i == j ? l2 : 0);
        });
        team.sync();
        if (!inverse_.invert(team)) return false;
        each_row(team, K.columns, [=, this](int i) {
            for (int j = 0; j < m; ++j) {
                *M_.at(j, i) = i < m ? static_cast<Real>(-(j < i ? inverse_.at(i, j) : inverse_.at(j, i))) : Real(0);
            }
            l2_[i] = i < m ? static_cast<Real>(l2) : Real(0);
            over_curvature_[i] = i < m ? static_cast<Real>(1 / curvature) : Real(1);
        });
        team.sync();
        return true;
    }

    // out (c rows) := M g of images. Barrier before and after are the caller's.
    FX_FUNCTION void apply(const Team& team, int c, const Real* g, Real* out) const {
        product(team, c, g, M_.columns, M_, out, M_.columns);
    }

    // K M g at column i from g and M g there; g where a bias stands.
    FX_FUNCTION V seen(int i, V g, V applied) const {
        return (g - applied * load<V>(l2_ + i)) * load<V>(over_curvature_ + i);
    }

  private:
    Inverse<Team> inverse_;
    Panels<Team, Real> M_;
    Real *l2_, *over_curvature_;
};

}  // namespace FX_NAMESPACE
