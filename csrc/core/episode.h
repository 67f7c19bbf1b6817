// What the ops have in common: an episode's inner products, and scores of queries from coefficients of the support.
#pragma once

#include <cmath>

#include "../ops.h"
#include "linalg.h"

namespace FX_NAMESPACE {

using fastxfer::Episodes;

// Queries whose inner products are held at a time.
constexpr int query_block = 128;

template <class Gram>
struct Episode {
    FX_FUNCTION Episode(const Episodes& all, std::int64_t e)
        : gram(static_cast<const Gram*>(all.gram) + e * all.gram_episode),
          gram_row(all.gram_row),
          support(all.support + e * all.support_episode),
          query(all.query + e * all.query_episode),
          labels(all.labels + e * all.labels_episode),
          offset(all.offset + e * all.image_episode),
          inverse_length(all.inverse_length + e * all.image_episode),
          square(all.square + e * all.image_episode) {}

    // Inner products of support image i with all images of the pool (or of the block).
    FX_FUNCTION const Gram* row(int i) const { return gram + support[i] * gram_row; }

    const Gram* gram;
    std::int64_t gram_row;
    const std::int64_t* support;
    const std::int64_t* query;
    const std::int32_t* labels;
    const double* offset;
    const double* inverse_length;
    const double* square;
};

// The classes that have support, numbered anew without gaps.
struct Classes {
    int* number;  // (ways): 0 … seen-1, or -1
    int* seen;    // one number

    FX_FUNCTION Classes(Workspace& memory, int ways) : number(memory.take<int>(ways)), seen(memory.take<int>(1)) {}

    template <class Team>
    FX_BODY void find(const Team& team, int ways, int m, const std::int32_t* labels) const {
        if (team.rank() == 0) {
            for (int way = 0; way < ways; ++way) number[way] = -1;
            for (int i = 0; i < m; ++i) number[labels[i]] = 0;
            int next = 0;
            for (int way = 0; way < ways; ++way) {
                if (number[way] == 0) number[way] = next++;
            }
            *seen = next;
        }
        team.sync();
    }
};

// K[i][j] := row[index[j]], zero behind `count`. The numbers are spread over the whole matrix and would be waited for
// one by one, so those of `next`, the row after this one, are asked for on the way.
template <class Team, class Real, class Gram>
FX_FUNCTION void gather_row(const Panels<Team, Real>& K, int i, const Gram* row, const Gram* next,
                            const std::int64_t* index, int count) {
    for (int first = 0; first < K.columns; first += K.P) {
        Real* to = K.at(i, first);
        const int width = K.panel_width(first), filled = count - first < width ? count - first : width;
        for (int j = 0; j < filled; ++j) {
            const std::int64_t column = index[first + j];
            prefetch(next + column);
            to[j] = static_cast<Real>(row[column]);
        }
        for (int j = filled; j < width; ++j) to[j] = Real(0);
    }
}

// Inner products of the support with itself: raw into K (rows m, columns padded), sums of rows beside it.
template <class Team, class Real, class Gram>
FX_BODY void gather_support(const Team& team, const Episode<Gram>& episode, int m, const Panels<Team, Real>& K,
                            double* row_sum) {
    each_row(team, m, [&](int i) {
        gather_row(K, i, episode.row(i), episode.row(i + team.size() < m ? i + team.size() : i), episode.support, m);
        double sum[4] = {};  // four chains of additions, since one would be waited for
        for (int first = 0; first < K.columns; first += K.P) {
            const Real* here = K.at(i, first);
            const int width = K.panel_width(first);
            for (int j = 0; j < width; ++j) sum[j % 4] += here[j];
        }
        row_sum[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    });
    team.sync();
}

// How large K was: mean diagonal entry of H K H, H = I - 11^T/m (1 if that is 0), and rounding of an entry of K, both
// in units of the former.
struct Size {
    double centred;
    double rounding;
};

// K := H K H / size.centred; row_sum becomes the raw matrix's row means.
template <class Gram, class Team, class Real>
FX_BODY Size centre(const Team& team, int m, const Panels<Team, Real>& K, double* row_sum) {
    double all = 0, trace = 0;
    for (int i = 0; i < m; ++i) {
        all += row_sum[i];
        trace += *K.at(i, i);
    }
    team.sync();
    each_row(team, m, [&](int i) { row_sum[i] /= m; });
    team.sync();
    const double grand = all / m / m;
    const double mean = trace / m - grand, size = mean > 0 ? mean : 1, scale = 1 / size;
    each_row(team, m, [&](int i) {
        for (int first = 0; first < K.columns; first += K.P) {
            Real* to = K.at(i, first);
            const int width = K.panel_width(first), filled = m - first < width ? m - first : width;
            const double shift = grand - row_sum[i];
            for (int j = 0; j < filled; ++j) to[j] = static_cast<Real>((to[j] - row_sum[first + j] + shift) * scale);
        }
    });
    team.sync();
    return {size, trace / m / size * static_cast<double>(Format<Gram>::epsilon)};
}

// Scores of queries first … first+count-1: S (rows x query_block) = A (rows x A_row) · inner products with the queries.
template <class Team, class Real, class Gram>
struct QueryScores {
    Panels<Team, Real> inner_products;
    Real* S;

    FX_FUNCTION QueryScores(Workspace& memory, int m, int rows)
        : inner_products{memory.take<Real>(static_cast<std::int64_t>(m) * query_block), m, query_block},
          S(memory.take<Real>(static_cast<std::int64_t>(rows) * query_block)) {}

    FX_BODY void gather(const Team& team, const Episode<Gram>& episode, int m, int first, int count) {
        inner_products.columns = padded<Team, Real>(count);
        const Panels<Team, Real> K = inner_products;
        each_row(team, m, [&](int i) {
            const Gram* next = episode.row(i + team.size() < m ? i + team.size() : i);
            gather_row(K, i, episode.row(i), next, episode.query + first, count);
        });
        team.sync();
    }

    FX_BODY void score(const Team& team, int rows, const Real* A, int A_row) const {
        product(team, rows, A, A_row, inner_products, S, query_block);
        team.sync();
    }
};

}  // namespace FX_NAMESPACE
