// The inverse of a symmetric positive definite matrix, a block of rows and columns at a time ("sweeps": Goodnight, The
// American Statistician 33, 1979). With the rows and columns k of a block,
//
//   A_ij -= A_ik A_kk^-1 A_kj,   A_ik := A_ik A_kk^-1,   A_kk := -A_kk^-1   (i, j not in k),
//
// and once every block has had its turn, A is minus its inverse. All of it but A_kk^-1 are products, n³/2
// multiplications, and A stays symmetric, so only its lower triangle is kept.
#pragma once

#include "linalg.h"

namespace FX_NAMESPACE {

template <class Team>
class Inverse {
  public:
    static constexpr int block = 32;  // whole panels of every team, so that some of the columns are panels, too

    Inverse() = default;
    FX_FUNCTION Inverse(Workspace& memory, int n) : n_(n), stride_(padded<Team, double>(n)) {
        A_ = memory.take<double>(static_cast<std::int64_t>(n) * stride_);
        pivots_ = memory.take<double>(block * block);
        beside_ = memory.take<double>(static_cast<std::int64_t>(n) * block);
        swept_ = memory.take<double>(static_cast<std::int64_t>(n) * block);
        strip_ = memory.take<double>(static_cast<std::int64_t>(block) * stride_);
        across_ = {memory.take<double>(static_cast<std::int64_t>(block) * stride_), block, stride_};
        within_ = {memory.take<double>(block * block), block, block};
    }

    // Entry (i, j), j ≤ i, of the matrix, which `invert` replaces by minus the inverse.
    FX_FUNCTION double& at(int i, int j) const { return A_[static_cast<std::int64_t>(i) * stride_ + j]; }

    // false if the matrix is not positive definite; what is left then is nothing.
    FX_BODY bool invert(const Team& team) {
        for (int first = 0; first < n_; first += block) {
            const int count = first + block <= n_ ? block : n_ - first;
            take_out(team, first, count);
            if (!invert_pivots(team, count)) return false;
            product(team, n_, beside_, block, within_, swept_, block);
            team.sync();
            subtract(team);
            put_back(team, first, count);
        }
        return true;
    }

  private:
    // The block's columns as rows and as panels, and where they cross its rows.
    FX_BODY void take_out(const Team& team, int first, int count) {
        each_row(team, stride_, [=, this](int i) {
            for (int k = 0; k < block; ++k) {
                const int column = first + k;
                const double x = i >= n_ || k >= count ? 0 : column < i ? at(i, column) : at(column, i);
                *across_.at(k, i) = x;
                if (i < n_) beside_[static_cast<std::int64_t>(i) * block + k] = x;
                if (i >= first && i < first + count) pivots_[(i - first) * block + k] = x;
            }
        });
        team.sync();
    }

    // Gauss-Jordan on the few rows; their inverse in panels, zero where the block is not full.
    FX_BODY bool invert_pivots(const Team& team, int count) {
        double* A = pivots_;
        for (int p = 0; p < count; ++p) {
            const double pivot = A[p * block + p];
            if (!(pivot > 0)) return false;
            team.sync();
            each_row(team, count, [=](int r) {
                if (r == p) return;
                const double factor = A[r * block + p] / pivot;
                for (int s = 0; s < count; ++s) A[r * block + s] -= s == p ? 0 : factor * A[p * block + s];
                A[r * block + p] = -factor;
            });
            team.sync();
            each_row(team, count, [=](int s) { A[p * block + s] = (s == p ? 1 : A[p * block + s]) / pivot; });
            team.sync();
        }
        each_row(team, block * block, [=, this](int at) {
            const int r = at / block, s = at % block;
            *within_.at(r, s) = r < count && s < count ? A[at] : 0;
        });
        team.sync();
        return true;
    }

    // A_ij -= A_ik A_kk^-1 A_kj for all i and j, a strip of rows at a time up to its last diagonal entry.
    FX_BODY void subtract(const Team& team) {
        using V = typename Lanes<double, Team::template width<double>>::V;
        for (int first = 0; first < n_; first += block) {
            const int count = first + block <= n_ ? block : n_ - first;
            const int columns = first + block < stride_ ? first + block : stride_;
            const Panels<Team, double> part = {across_.data, block, columns};
            product(team, count, swept_ + static_cast<std::int64_t>(first) * block, block, part, strip_, stride_);
            team.sync();
            double *to = A_ + static_cast<std::int64_t>(first) * stride_, *strip = strip_;
            const int stride = stride_;
            each_cell<double>(team, count, columns, [=](int row, int i) {
                const std::int64_t at = static_cast<std::int64_t>(row) * stride + i;
                store(to + at, load<V>(to + at) - load<V>(strip + at));
            });
            team.sync();
        }
    }

    FX_BODY void put_back(const Team& team, int first, int count) {
        each_row(team, n_, [=, this](int i) {
            for (int k = 0; k < count; ++k) {
                const int column = first + k;
                if (i >= first && i < first + count) {
                    if (column <= i) at(i, column) = -pivots_[(i - first) * block + k];
                } else {
                    (column < i ? at(i, column) : at(column, i)) = swept_[static_cast<std::int64_t>(i) * block + k];
                }
            }
        });
        team.sync();
    }

    int n_, stride_;
    double *A_, *pivots_, *beside_, *swept_, *strip_;
    Panels<Team, double> across_, within_;
};

}  // namespace FX_NAMESPACE
