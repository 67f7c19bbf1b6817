// The logistic probe of one episode, along a path of penalties: its support is gathered and solved, its queries scored.
#pragma once

#include "episode.h"
#include "logistic_solver.h"

namespace FX_NAMESPACE {

using fastxfer::LogisticParams;

// Scores of an episode's queries from c rows of coefficients A (zero-sum over images) and biases, for n_l2 solutions
// that stand behind each other. In the binary form (c = 1) a row z becomes (-z/2, z/2). Classes without support score
// -inf.
template <class Team, class Real, class Gram>
FX_BODY void write_logits(const Team& team, const LogisticParams& params, std::int64_t e, const int* number, int c,
                          const Real* solutions, int stride, const double* biases,
                          QueryScores<Team, Real, Gram>& queries) {
    const Episodes& all = params.episodes;
    const Episode<Gram> episode(all, e);
    for (int first = 0; first < all.q; first += query_block) {
        const int count = first + query_block <= all.q ? query_block : all.q - first;
        queries.gather(team, episode, all.m, first, count);
        for (int l = 0; l < params.n_l2; ++l) {
            const std::int64_t at = static_cast<std::int64_t>(l) * c;
            queries.score(team, c, solutions + at * stride, stride);
            float* to = all.scores + ((e * params.n_l2 + params.place[l]) * all.q + first) * all.ways;
            const Real* S = queries.S;
            for (int way = 0; way < all.ways; ++way) {
                const int row = number[way];
                const Real bias = row >= 0 ? static_cast<Real>(biases[c == 1 ? at : at + row]) : Real(0);
                const Real factor = c > 1 ? Real(1) : row == 0 ? Real(-0.5) : Real(0.5);
                const Real* from = S + (c == 1 || row < 0 ? 0 : row * query_block);
                each_row(team, count, [=](int j) {
                    to[static_cast<std::int64_t>(j) * all.ways + way] =
                        row >= 0 ? static_cast<float>(factor * (from[j] + bias)) : -INFINITY;
                });
            }
            team.sync();
        }
    }
}

// The same solutions as coefficients of the support images and biases, one row a class, for scores that are not made of
// inner products with queries. Classes without support have bias -inf.
template <class Team, class Real>
FX_BODY void write_coefficients(const Team& team, const LogisticParams& params, std::int64_t e, const int* number,
                                int c, const Real* solutions, int stride, const double* biases) {
    const int m = params.episodes.m, ways = params.episodes.ways;
    each_row(team, params.n_l2 * ways, [=, &params](int i) {
        const int l = i / ways, way = i % ways, row = number[way];
        const std::int64_t at = static_cast<std::int64_t>(l) * c + (c == 1 || row < 0 ? 0 : row);
        const std::int64_t to = (e * params.n_l2 + params.place[l]) * ways + way;
        const double factor = row < 0 ? 0 : c > 1 ? 1 : row == 0 ? -0.5 : 0.5;
        for (int j = 0; j < m; ++j) params.coefficients[to * m + j] = factor * solutions[at * stride + j];
        params.bias[to] = row < 0 ? -INFINITY : factor * biases[at];
    });
    team.sync();
}

// All that an episode's solution needs, in one block of memory.
template <class Team, class Real, class Gram, class Loss>
struct LogisticMemory {
    FX_FUNCTION LogisticMemory(Workspace& memory, const LogisticParams& params, int c)
        : solver(memory, params.episodes.m, c),
          row_mean(memory.take<double>(params.episodes.m)),
          queries(memory, params.episodes.m, c),
          solutions(memory.take<Real>(static_cast<std::int64_t>(params.n_l2) * c * solver.stride())),
          biases(memory.take<double>(static_cast<std::int64_t>(params.n_l2) * c)) {}

    LogisticSolver<Team, Real, Loss> solver;
    double* row_mean;
    QueryScores<Team, Real, Gram> queries;
    Real* solutions;
    double* biases;
};

// Weight of the loss of an image with this label.
FX_FUNCTION double class_weight(const LogisticParams& params, const std::int32_t* labels, int seen,
                                std::int32_t label) {
    if (!params.balanced) return params.class_weight ? params.class_weight[label] : 1;
    int alike = 0;
    for (int i = 0; i < params.episodes.m; ++i) alike += labels[i] == label;
    return static_cast<double>(params.episodes.m) / seen / alike;
}

// Whether more precise numbers would not help with these inner products: solved, or in need of better ones.
template <class Real, class Gram, class Loss, class Team>
FX_BODY bool solve_logistic(const Team& team, const LogisticParams& params, std::int64_t e, const Classes& classes,
                            int c, Workspace& memory) {
    const Episodes& all = params.episodes;
    const Episode<Gram> episode(all, e);
    const int m = all.m;
    LogisticMemory<Team, Real, Gram, Loss> own(memory, params, c);
    auto& solver = own.solver;
    gather_support(team, episode, m, solver.K, own.row_mean);
    // W = A X of the scaled problem is (A/size) X of this one, and its ‖W‖² counts 1/size as much.
    const Size measured = centre<Gram>(team, m, solver.K, own.row_mean);
    const double size = measured.centred;
    // The solver's weights add up to one: what they add up to goes to l2 and to the objective.
    double weights = m;
    if (params.class_weight) weights = lone_sum(m, [&](int i) { return params.class_weight[episode.labels[i]]; });
    each_row(team, m, [&](int i) {
        solver.label[i] = static_cast<Real>(classes.number[episode.labels[i]]);
        solver.weight[i] =
            static_cast<Real>(class_weight(params, episode.labels, *classes.seen, episode.labels[i]) / weights);
    });
    team.sync();
    solver.start(team);
    const double mean_weight = weights / m, unit = size * mean_weight;  // of l2

    bool all_converged = true, doubtful = false;
    const int stride = solver.stride();
    for (int l = 0; l < params.n_l2; ++l) {
        const bool converged = solver.solve(team, params.l2[l] / unit, params.tol, params.max_iter);
        all_converged = all_converged && converged;
        // By the dual, an error E of K moves the optimum by tr(R E R^T) / (2 l2), R the residuals: much, where they lie
        // in directions that K hardly has.
        const double residuals = solver.residual_norm(team) / (2 * params.l2[l] / unit);
        doubtful = doubtful || measured.rounding * residuals > 0.5 * params.tol * solver.objective;
        const std::int64_t answer = e * params.n_l2 + params.place[l];
        if (team.rank() == 0) {
            params.objective[answer] = solver.objective * mean_weight;
            params.iterations[answer] = solver.iterations;
            params.converged[answer] = converged;
        }
        // Back to the pool's coordinates: coefficients of the raw embeddings, so zero-sum over images (the mean's part
        // goes to the bias), and over classes.
        Real* solution = own.solutions + static_cast<std::int64_t>(l) * c * stride;
        double* biases = own.biases + static_cast<std::int64_t>(l) * c;
        each_row(team, c, [&](int row) {
            const Real* from = solver.A + row * stride;
            Real* to = solution + row * stride;
            const Real mean = static_cast<Real>(lone_sum(m, [=](int i) { return from[i]; }) / m);
            const Real scale = static_cast<Real>(1 / size);
            for (int i = 0; i < stride; ++i) to[i] = i < m ? (from[i] - mean) * scale : Real(0);
            const double* row_mean = own.row_mean;
            biases[row] = solver.bias(row) - lone_sum(m, [=](int i) { return to[i] * row_mean[i]; });
        });
        team.sync();
        if (c > 1) {
            using V = typename Lanes<Real, Team::template width<Real>>::V;
            each<Real>(team, stride, [=](int i) {
                V mean = V{};
                for (int row = 0; row < c; ++row) mean += load<V>(solution + row * stride + i);
                mean = mean * (Real(1) / c);
                for (int row = 0; row < c; ++row) {
                    Real* at = solution + row * stride + i;
                    store(at, load<V>(at) - mean);
                }
            });
            if (team.rank() == 0) {
                double mean = 0;
                for (int row = 0; row < c; ++row) mean += biases[row] / c;
                for (int row = 0; row < c; ++row) biases[row] -= mean;
            }
            team.sync();
        }
    }
    if (team.rank() == 0) params.doubtful[e] = doubtful;
    if (params.coefficients) {
        write_coefficients(team, params, e, classes.number, c, own.solutions, stride, own.biases);
    }
    write_logits(team, params, e, classes.number, c, own.solutions, stride, own.biases, own.queries);
    return all_converged || doubtful;
}

// One class seen: its probability is one whatever W, and W = 0 is the best.
template <class Team>
FX_BODY void only_class(const Team& team, const LogisticParams& params, std::int64_t e, const int* number) {
    const Episodes& all = params.episodes;
    if (team.rank() == 0) params.doubtful[e] = false;
    each_row(team, params.n_l2, [&](int l) {
        const std::int64_t at = e * params.n_l2 + l;
        params.objective[at] = 0;
        params.iterations[at] = 0;
        params.converged[at] = true;
        float* to = all.scores + at * all.q * all.ways;
        for (int j = 0; j < all.q; ++j) {
            for (int way = 0; way < all.ways; ++way) to[j * all.ways + way] = number[way] >= 0 ? 0.0f : -INFINITY;
        }
        for (int way = 0; params.coefficients && way < all.ways; ++way) {
            double* row = params.coefficients + (at * all.ways + way) * all.m;
            for (int i = 0; i < all.m; ++i) row[i] = 0;
            params.bias[at * all.ways + way] = number[way] >= 0 ? 0 : -INFINITY;
        }
    });
}

template <class Real, class Gram, class Team>
FX_BODY bool logistic_episode(const Team& team, const LogisticParams& params, std::int64_t e, void* block) {
    const Episodes& all = params.episodes;
    Workspace memory(block);
    const Classes classes(memory, all.ways);
    classes.find(team, all.ways, all.m, all.labels + e * all.labels_episode);
    if (*classes.seen == 1) {
        only_class(team, params, e, classes.number);
        return true;
    }
    return all.ways == 2 ? solve_logistic<Real, Gram, Binary>(team, params, e, classes, 1, memory)
                         : solve_logistic<Real, Gram, Softmax>(team, params, e, classes, *classes.seen, memory);
}

template <class Real, class Gram, class Team>
FX_BODY std::size_t logistic_bytes(const LogisticParams& params) {
    const Episodes& all = params.episodes;
    Workspace memory(nullptr);
    const Classes classes(memory, all.ways);
    if (all.ways == 2) {
        const LogisticMemory<Team, Real, Gram, Binary> own(memory, params, 1);
    } else {
        const LogisticMemory<Team, Real, Gram, Softmax> own(memory, params, all.ways < all.m ? all.ways : all.m);
    }
    return memory.used();
}

}  // namespace FX_NAMESPACE
