// The logistic probe of one episode, along a path of penalties. docs/probes.md derives it.
//
//   minimise over W, b:  (1/m) Σ_i loss(y_i, W x_i + b) + (l2/2) ‖W‖²,   W = A X (A: c x m), X centred.
//
// Memoryless BFGS (L-BFGS that remembers one pair) in the inner product of K = X X^T on A, and of the identity on the
// bias: a "vector" is c rows of m numbers and the row's bias, v = (A | β), b = θ β, <u, v> = tr(A_u K A_v^T) + β_u·β_v.
// With K̂ v = (A K | β) the inner product is <u, v> = u·K̂v, the gradient is g = ((P - Y)/m + l2·A | θ Σ_i (P - Y)_i /
// m), logits are A K + θ β. K̂ is kept with every stored vector, so an iteration has one product, K̂g. Logits along a
// line are linear: its search takes none.
#pragma once

#include "episode.h"
#include "softmax.h"

namespace FX_NAMESPACE {

using fastxfer::LogisticParams;

template <class Team, class Real, class Loss>
class LogisticSolver {
  public:
    static constexpr int W = Team::template width<Real>;
    using V = typename Lanes<Real, W>::V;

    FX_FUNCTION LogisticSolver(Workspace& memory, int m, int c)
        : m_(m), c_(c), stride_(padded<Team, Real>(m + 1)), n_(c * stride_) {
        const std::int64_t n = n_;
        K.data = memory.take<Real>(static_cast<std::int64_t>(m) * stride_);
        K.rows = m;
        K.columns = stride_;
        label = memory.take<Real>(stride_);
        weight = memory.take<Real>(stride_);
        per_weight_ = memory.take<Real>(stride_);
        is_image_ = memory.take<Real>(n);
        A = memory.take<Real>(n);
        A_before_ = memory.take<Real>(n);
        A_older_ = memory.take<Real>(n);
        Z_older_ = memory.take<Real>(n);
        Z_ = memory.take<Real>(n);
        Z_before_ = memory.take<Real>(n);
        R_ = memory.take<Real>(n);
        G_ = memory.take<Real>(n);
        KG_ = memory.take<Real>(n);
        ZD_ = memory.take<Real>(n);
        D_ = memory.take<Real>(n);
        KD_ = memory.take<Real>(n);
        Y_ = memory.take<Real>(n);
        KY_ = memory.take<Real>(n);
        row_bias_ = memory.take<Real>(c);
        row_change_ = memory.take<Real>(c);
        bias_matrix_ = memory.take<double>(static_cast<std::int64_t>(c) * c);
        bias_vector_ = memory.take<double>(c);
        shared_ = memory.take<double>(1);
    }

    // K, label and weight must be filled (by the whole team, barrier included); starts at W = 0, b = 0.
    FX_BODY void start(const Team& team) {
        const int m = m_;
        each_row(team, stride_, [=, this](int i) {
            if (i >= m) weight[i] = Real(0);
            if (i >= m) label[i] = Real(-1);
            per_weight_[i] = weight[i] > Real(0) ? 1 / weight[i] : Real(0);
        });
        each_row(team, n_, [=, this](int i) { is_image_[i] = i % stride_ < m ? Real(1) : Real(0); });
        fill(team, n_, A, Real(0));
        fill(team, n_, Z_, Real(0));
        fill(team, n_, ZD_, Real(0));
        objective = 1e300;
        solved_ = 0;
        team.sync();
    }

    // Continue from where the last call ended. l2 belongs to the scaled K. Afterwards A, bias() and `objective` are the
    // solution's.
    FX_BODY bool solve(const Team& team, double l2, double tol, int max_iter) {
        iterations = 0;
        bool converged = false;
        scale_bias(team, l2);
        if (solved_ > 0) extrapolate(team, l2);
        l2_older_ = l2_before_;
        l2_before_ = l2_last_;
        l2_last_ = l2;
        ++solved_;
        // Logits are followed by adding steps up. They are computed anew at the end; if that shows that rounding has
        // moved them, the search goes on from there.
        for (int round = 0; round < 3; ++round) {
            const double followed = search(team, l2, tol, max_iter, converged);
            refresh(team);
            objective = value(team, l2);
            const double moved = objective > followed ? objective - followed : followed - objective;
            if (!converged || moved <= 0.5 * tol * objective + 4 * Format<Real>::epsilon * objective) break;
        }
        return converged;
    }

    FX_FUNCTION Real bias(int c) const { return theta_ * A[c * stride_ + m_]; }
    FX_FUNCTION int stride() const { return stride_; }
    // Σ over images and classes of ((P - Y)/m)² where the search ended
    FX_FUNCTION double residual_norm(const Team& team) const { return penalised(team, R_, R_); }

    Panels<Team, Real> K;
    Real* label;
    Real* weight;  // of an image's loss; they add up to one
    Real* A;
    double objective;
    int iterations;

  private:
    // θ for this l2. Along weights the curvature is l2 and what the loss adds, at most the order of K's mean diagonal,
    // one; along the biases it is θ² p (1 - p). θ makes it no less than l2: were it less, steps that suit the biases
    // would be too long for weights, and in directions that K does not see they would grow without bound.
    FX_BODY void scale_bias(const Team& team, double l2) {
        const double classes = c_ > 1 ? c_ : 4;
        const Real theta = static_cast<Real>(sqrt(0.5 + classes * l2)), change = theta_ / theta;
        each_row(team, c_, [=, this](int c) {
            A[c * stride_ + m_] *= change;
            A_before_[c * stride_ + m_] *= change;
            A_older_[c * stride_ + m_] *= change;
        });
        theta_ = theta;
        team.sync();
    }

    // Along a path the solution is smooth in log l2, so the next one is looked for where the last three point to by a
    // parabola, or the last two by a line: the noise of solutions grows less along it. Where the objective is lowest,
    // the search begins; the last solution itself is the third that it may begin from.
    FX_BODY void extrapolate(const Team& team, double l2) {
        const double step = solved_ > 1 ? log(l2_last_ / l2_before_) : 0;
        const double older = solved_ > 2 && step != 0 ? log(l2_before_ / l2_older_) / step : 0;
        // No further than the last step went: parts of A that K does not see would grow from step to step.
        const double ahead = step != 0 ? log(l2 / l2_last_) / step : 0, w = ahead < 1 ? ahead : 1;
        Guess guess{w, older > 0 ? w * (w + 1) / (1 + older) : 0, older > 0 ? 1 / older : 0};
        guess(team, n_, A, A_before_, A_older_, D_);
        guess(team, n_, Z_, Z_before_, Z_older_, ZD_);
        team.sync();
        const double norm = a_norm_, last = objective + 0.5 * (l2 - l2_last_) * norm;
        objective = last;
        if (w == 0) return;
        a_norm_ = squared_norm(team);
        double lowest = value(team, l2);
        if (guess.bend != 0) {
            const double straight = a_norm_;
            move(team, Real(1));
            a_norm_ = squared_norm(team);
            const double bent = value(team, l2);
            if (bent < lowest) {
                lowest = bent;
            } else {
                move(team, Real(-1));
                a_norm_ = straight;
            }
        }
        objective = lowest < last ? lowest : last;
        if (lowest <= last) return;
        a_norm_ = norm;
        team.sync();
        Real *a = A, *z = Z_, *a_before = A_before_, *z_before = Z_before_;
        each<Real>(team, n_, [=](int i) {
            store(a + i, load<V>(a_before + i));
            store(z + i, load<V>(z_before + i));
        });
        team.sync();
    }

    // Next to x, before and older (`apart` last steps earlier), where the last step leads to.
    struct Guess {
        double along, bend, over_apart;
        // x moves along the line, `bent` is what leads from there to the parabola; the solutions move on.
        FX_BODY void operator()(const Team& team, int n, Real* x, Real* before, Real* older, Real* bent) const {
            const Real w = static_cast<Real>(along), off = static_cast<Real>(bend),
                       slower = static_cast<Real>(over_apart);
            each<Real>(team, n, [=](int i) {
                const V last = load<V>(x + i), old = load<V>(before + i), change = last - old;
                if (w != Real(0)) store(x + i, last + change * w);
                if (off != Real(0)) store(bent + i, (change - (old - load<V>(older + i)) * slower) * off);
                store(older + i, old);
                store(before + i, last);
            });
        }
    };

    FX_BODY void move(const Team& team, Real sign) {
        Real *a = A, *z = Z_, *d = D_, *zd = ZD_;
        team.sync();
        each<Real>(team, n_, [=](int i) {
            store(a + i, load<V>(a + i) + load<V>(d + i) * sign);
            store(z + i, load<V>(z + i) + load<V>(zd + i) * sign);
        });
        team.sync();
    }

    // ‖W‖² from A and the logits of A, biases taken off.
    FX_BODY double squared_norm(const Team& team) const {
        double sum = 0;
        for (int c = 0; c < c_; ++c) {
            const Real b = bias(c);
            const Real *a = A + c * stride_, *z = Z_ + c * stride_, *mask = is_image_ + c * stride_;
            sum += total<Real>(team, stride_,
                               [=](int i) { return load<V>(a + i) * (load<V>(z + i) - b) * load<V>(mask + i); });
        }
        return sum;
    }

    FX_FUNCTION Images<Real> images() const { return {c_, stride_, label, weight, per_weight_}; }

    // Sum over images (not biases) of x·y.
    FX_BODY double penalised(const Team& team, const Real* x, const Real* y) const {
        const Real* mask = is_image_;
        return total<Real>(team, n_, [=](int i) { return load<V>(x + i) * load<V>(y + i) * load<V>(mask + i); });
    }

    FX_BODY double value(const Team& team, double l2) const {
        return Loss::loss(team, images(), Z_) + 0.5 * l2 * a_norm_;
    }

    // Z := A K + b, and ‖W‖².
    FX_BODY void refresh(const Team& team) {
        team.sync();
        product(team, c_, A, stride_, K, Z_, stride_);
        team.sync();
        a_norm_ = penalised(team, A, Z_);
        team.sync();
        add_bias(team, Z_, A);
    }

    // rows of Z += θ · the biases in x
    FX_BODY void add_bias(const Team& team, Real* Z, const Real* x) const {
        for (int c = 0; c < c_; ++c) {
            const Real b = theta_ * x[c * stride_ + m_];
            Real* z = Z + c * stride_;
            each<Real>(team, stride_, [=](int i) { store(z + i, load<V>(z + i) + b); });
        }
        team.sync();
    }

    // G and K̂G from R at the present point.
    FX_BODY void gradient(const Team& team, Real l2) {
        const Real *mask = is_image_, *a = A, *r = R_;
        Real* g = G_;
        each<Real>(team, n_, [=](int i) { store(g + i, load<V>(r + i) + load<V>(a + i) * load<V>(mask + i) * l2); });
        team.sync();
        finish_gradient(team);
    }

    // Bias entries of G, and K̂G.
    FX_BODY void finish_gradient(const Team& team) {
        each_row(team, c_, [=, this](int c) { G_[c * stride_ + m_] = theta_ * row_sum(R_ + c * stride_); });
        team.sync();
        product(team, c_, G_, stride_, K, KG_, stride_);
        team.sync();
        each_row(team, c_, [=, this](int c) { KG_[c * stride_ + m_] = G_[c * stride_ + m_]; });
        team.sync();
    }

    // g_b^T H_b^+ g_b: twice what the bias alone can still gain, to second order.
    FX_BODY double bias_gain(const Team& team) {
        const Images<Real> of = images();
        const int c = c_;
        Loss::bias_hessian(team, of, R_, bias_matrix_);
        each_row(team, c, [=, this](int i) { bias_vector_[i] = G_[i * stride_ + m_] / theta_; });
        team.sync();
        if (team.rank() == 0) {
            double trace = 0;
            for (int i = 0; i < c; ++i) trace += bias_matrix_[i * c + i];
            // The gradient has no part along the vector of ones, where the Hessian of more than one class is zero.
            if (c > 1) {
                for (int i = 0; i < c; ++i) {
                    for (int j = 0; j <= i; ++j) bias_matrix_[i * c + j] += trace / c / c;
                }
            }
            shared_[0] = trace;
        }
        team.sync();
        const double trace = shared_[0];
        if (!(trace > 0)) return 0;
        cholesky(team, c, bias_matrix_, c, 1e-14 * trace);
        team.sync();
        if (team.rank() == 0) {
            double gain = 0;
            for (int i = 0; i < c; ++i) {  // L u = g, gain = u·u
                double u = bias_vector_[i];
                for (int k = 0; k < i; ++k) u -= bias_matrix_[i * c + k] * bias_vector_[k];
                u /= bias_matrix_[i * c + i];
                bias_vector_[i] = u;
                gain += u * u;
            }
            shared_[0] = gain;
        }
        team.sync();
        const double gain = shared_[0];
        team.sync();
        return gain;
    }

    // Minimise until the bound on the gap holds; returns the objective followed so far.
    FX_BODY double search(const Team& team, double l2, double tol, int max_iter, bool& converged) {
        const Images<Real> of = images();
        const Real penalty = static_cast<Real>(l2);
        Loss::residual(team, of, Z_, ZD_, Real(0), R_);
        team.sync();
        gradient(team, penalty);
        double gg_images = penalised(team, G_, KG_);
        Pair pair;
        converged = false;
        double known = objective;  // when it was last computed
        while (true) {
            // f(W, b) - f* ≤ ‖∇_W f‖² / (2 l2) where the bias is the best for W; what the bias can gain is added. The
            // logarithms of f are spared until the bound is near.
            if (gg_images <= 2 * l2 * tol * known) {
                known = value(team, l2);
                const double bound = (gg_images > 0 ? gg_images : 0) / (2 * l2);
                if (bound <= tol * known && bound + bias_gain(team) <= tol * known) {
                    converged = true;
                    return known;
                }
            }
            if (iterations >= max_iter) break;

            const Line along = direction(team, pair, l2);
            if (!(along.slope < 0)) {
                if (!pair.known) break;  // no descent left that this precision can see
                pair.known = false;
                continue;
            }
            const double t = line(team, l2, along.with_a, along.dd, along.slope, !pair.known);
            if (!(t > 0)) {
                if (!pair.known) break;
                pair.known = false;
                Loss::residual(team, of, Z_, ZD_, Real(0), R_);
                team.sync();
                continue;
            }
            ++iterations;
            a_norm_ += t * (2 * along.with_a + t * along.dd);
            gg_images = step(team, penalty, t, along.slope, pair);
        }
        return value(team, l2);
    }

    // What is known of the last direction d and the change of the gradient along it, y = (new g - old g)/t.
    struct Pair {
        bool known = false;
        double dy, yy;  // inner products of the two
        double dg, yg;  // and with the present gradient
    };

    // What a line's search needs to know: the slope along d, <A, d> and <d, d> without biases.
    struct Line {
        double slope, with_a, dd;
    };

    // D := the direction of descent, and its logits. Without a pair it is -g; else d := -H g, where H is γI updated by
    // the pair (the two loops of Nocedal 1980, written out):
    //   α = <d, g>/<d, y>,  q = g - α y,  β = γ <y, q>/<d, y>,  H g = γ q + (α - β) d.
    FX_BODY Line direction(const Team& team, const Pair& pair, double l2) {
        Real of_g = -1, of_y = 0, of_d = 0;
        if (pair.known) {
            // No curvature is below l2 but, perhaps, along the biases.
            const double measured = pair.dy / pair.yy, gamma = measured * l2 < 1 ? measured : 1 / l2;
            const double alpha = pair.dg / pair.dy, beta = gamma * (pair.yg - alpha * pair.yy) / pair.dy;
            of_g = static_cast<Real>(-gamma);
            of_y = static_cast<Real>(gamma * alpha);
            of_d = static_cast<Real>(beta - alpha);
        } else {  // what stands there may be anything
            fill(team, n_, D_, Real(0));
            fill(team, n_, KD_, Real(0));
            fill(team, n_, Y_, Real(0));
            fill(team, n_, KY_, Real(0));
        }
        team.sync();
        each_row(team, c_, [=, this](int c) {
            const int at = c * stride_ + m_;
            row_bias_[c] = theta_ * (G_[at] * of_g + Y_[at] * of_y + D_[at] * of_d);
        });
        team.sync();
        const Real *g = G_, *kg = KG_, *y = Y_, *ky = KY_, *a = A, *mask = is_image_, *bias = row_bias_;
        Real *d = D_, *kd = KD_, *zd = ZD_;
        V slope = V{}, with_a = V{}, dd = V{};
        each_cell<Real>(team, c_, stride_, [&](int row, int i) {
            const int at = row * stride_ + i;
            const V d_new = load<V>(g + at) * of_g + load<V>(y + at) * of_y + load<V>(d + at) * of_d;
            const V kg_here = load<V>(kg + at);
            const V kd_new = kg_here * of_g + load<V>(ky + at) * of_y + load<V>(kd + at) * of_d;
            store(d + at, d_new);
            store(kd + at, kd_new);
            store(zd + at, kd_new + bias[row]);
            const V image = kd_new * load<V>(mask + i);
            slope += d_new * kg_here;
            with_a += load<V>(a + at) * image;
            dd += d_new * image;
        });
        const Line along = {sum(team, slope), sum(team, with_a), sum(team, dd)};
        team.sync();
        return along;
    }

    // A step length where the slope along the line has shrunk; 0 if there is none. Leaves R there. The objective is
    // convex, so the slope grows along the line and its zero can be enclosed without values of the objective, whose
    // last digits would not tell.
    FX_BODY double line(const Team& team, double l2, double with_a, double dd, double slope, bool first) {
        const Images<Real> of = images();
        double t = 1;
        if (first) {
            const double curvature = Loss::curvature(team, of, R_, ZD_) + l2 * dd;
            t = curvature > 0 ? -slope / curvature : 1;
        }
        double low = 0, low_slope = slope, high = 0, high_slope = 0;
        for (int attempt = 0; attempt < 30; ++attempt) {
            const double here = Loss::residual(team, of, Z_, ZD_, static_cast<Real>(t), R_) + l2 * (with_a + t * dd);
            if (here >= 0.9 * slope && here <= -0.4 * slope) {
                team.sync();
                return t;
            }
            if (here < 0) {
                low = t;
                low_slope = here;
            } else {
                high = t;
                high_slope = here;
            }
            if (high == 0) {
                // Extrapolate the slope to zero, within reason.
                const double bend = (low_slope - slope) / low;
                const double zero = bend > 0 ? low - low_slope / bend : 10 * low;
                t = zero > 10 * low ? 10 * low : zero < 2 * low ? 2 * low : zero;
            } else {
                const double zero = low + (high - low) * low_slope / (low_slope - high_slope);
                const double margin = 0.1 * (high - low);
                t = zero < low + margin ? low + margin : zero > high - margin ? high - margin : zero;
            }
            if (!(t < 1e30) || static_cast<Real>(t) == Real(0)) break;
        }
        team.sync();
        return 0;
    }

    // Move by t along d; G, y and what is known of the pair there. Returns <G, G> without biases.
    FX_BODY double step(const Team& team, Real l2, double length, double slope, Pair& pair) {
        const Real t = static_cast<Real>(length), over_t = Real(1) / t;
        // Biases come last into the rows: the pass over the images writes where they stand, too.
        each_row(team, c_, [=, this](int c) {
            const Real bias = theta_ * row_sum(R_ + c * stride_);
            row_bias_[c] = bias;
            row_change_[c] = (bias - G_[c * stride_ + m_]) * over_t;
        });
        team.sync();
        const Real *d = D_, *zd = ZD_, *r = R_, *mask = is_image_;
        Real *a = A, *z = Z_, *g = G_, *y = Y_, *kg = KG_, *ky = KY_;
        each_cell<Real>(team, c_, stride_, [=, this](int row, int i) {
            const int at = row * stride_ + i;
            const V a_new = load<V>(a + at) + load<V>(d + at) * t;
            const V g_new = load<V>(r + at) + a_new * load<V>(mask + i) * l2;
            store(a + at, a_new);
            store(z + at, load<V>(z + at) + load<V>(zd + at) * t);
            store(y + at, (g_new - load<V>(g + at)) * over_t);
            store(g + at, g_new);
        });
        team.sync();
        each_row(team, c_, [=, this](int c) {
            G_[c * stride_ + m_] = row_bias_[c];
            Y_[c * stride_ + m_] = row_change_[c];
        });
        team.sync();
        product(team, c_, G_, stride_, K, KY_, stride_);
        team.sync();
        each_row(team, c_, [=, this](int c) { KY_[c * stride_ + m_] = row_bias_[c]; });
        team.sync();
        V dg = V{}, yg = V{}, yy = V{}, gg = V{};
        each_cell<Real>(team, c_, stride_, [&](int row, int i) {
            const int at = row * stride_ + i;
            const V kg_new = load<V>(ky + at), y_here = load<V>(y + at);
            const V ky_new = (kg_new - load<V>(kg + at)) * over_t;
            store(ky + at, ky_new);
            store(kg + at, kg_new);
            dg += load<V>(d + at) * kg_new;
            yg += y_here * kg_new;
            yy += y_here * ky_new;
            gg += load<V>(g + at) * kg_new * load<V>(mask + i);
        });
        pair.dg = sum(team, dg);
        pair.yg = sum(team, yg);
        pair.yy = sum(team, yy);
        pair.dy = (pair.dg - slope) / length;
        pair.known = pair.dy > 0 && pair.yy > 0;
        return sum(team, gg);
    }

    FX_FUNCTION Real row_sum(const Real* x) const {
        V sum = V{};
        for (int i = 0; i < stride_; i += W) sum += load<V>(x + i);
        return across<Real, W>(sum);
    }

    FX_FUNCTION static double sum(const Team& team, V lanes) {
        return team.sum(static_cast<double>(across<Real, W>(lanes)));
    }

    int m_, c_, stride_, n_;
    int solved_ = 0;  // penalties of the path so far
    double l2_last_ = 0, l2_before_ = 0, l2_older_ = 0;
    double a_norm_ = 0;
    Real theta_ = 1;
    Real *per_weight_, *is_image_, *A_before_, *Z_before_, *A_older_, *Z_older_, *Z_, *R_, *G_, *KG_, *ZD_, *D_, *KD_,
        *Y_, *KY_, *row_bias_, *row_change_;
    double *bias_matrix_, *bias_vector_, *shared_;
};

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
    return all_converged;
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
