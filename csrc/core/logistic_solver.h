// The solver of the logistic probe, along a path of penalties. docs/probes.md derives it.
//
//   minimise over W, b:  (1/m) Σ_i loss(y_i, W x_i + b) + (l2/2) ‖W‖²,   W = A X (A: c x m), X centred.
//
// Memoryless BFGS (L-BFGS that remembers one pair) in the inner product of K = X X^T on A, and of the identity on the
// bias: a "vector" is c rows of m numbers and the row's bias, v = (A | β), b = θ β, <u, v> = tr(A_u K A_v^T) + β_u·β_v.
// With K̂ v = (A K | β) the inner product is <u, v> = u·K̂v, the gradient is g = ((P - Y)/m + l2·A | θ Σ_i (P - Y)_i /
// m), logits are A K + θ β. K̂ is kept with every stored vector, so an iteration has one product, K̂g. Logits along a
// line are linear: its search takes none.
//
// A search that takes long goes on in the inner product of K B, where B = l2·I + κ K is what the Hessian would be if
// the losses curved alike at all images. The gradient there is B^-1 g, so G stands for that, and B G beside it for g.
#pragma once

#include "preconditioner.h"
#include "softmax.h"

namespace FX_NAMESPACE {

template <class Team, class Real, class Loss>
class LogisticSolver {
  public:
    static constexpr int W = Team::template width<Real>;
    using V = typename Lanes<Real, W>::V;

    FX_FUNCTION LogisticSolver(Workspace& memory, int m, int c)
        : m_(m),
          c_(c),
          stride_(padded<Team, Real>(m + 1)),
          n_(c * stride_),
          patience_(60 + 8 * m / (c * static_cast<int>(sizeof(Real)))) {
        const std::int64_t n = n_;
        if (may_precondition()) preconditioner_ = {memory, m, stride_};
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
        BG_ = memory.take<Real>(n);
        BY_ = memory.take<Real>(n);
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
        waited_ = iterations;  // this penalty is expected to take as many as the last
        iterations = 0;
        bool converged = false;
        if (!near(l2, l2_made_)) preconditioned_ = false;
        if (!preconditioned_) scale_bias(team, plain_theta(l2));
        if (solved_ > 0) extrapolate(team, l2);
        l2_older_ = l2_before_;
        l2_before_ = l2_last_;
        l2_last_ = l2;
        ++solved_;
        // Logits are followed by adding steps up. They are computed anew at the end; if that shows that rounding has
        // moved them, the search goes on from there. If it always does, by no more than was to be left open, it is that
        // of A itself, whose numbers are as large as l2 is small.
        double moved = 0;
        for (int round = 0; round < 3; ++round) {
            const double followed = search(team, l2, tol, max_iter, converged);
            if (preconditioned_) settle_unseen(team, l2);
            refresh(team);
            objective = value(team, l2);
            moved = objective > followed ? objective - followed : followed - objective;
            if (!converged || moved <= 0.5 * tol * objective + 4 * Format<Real>::epsilon * objective) return converged;
        }
        return moved <= tol * objective;
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
    int iterations = 0;

  private:
    // θ without a preconditioner. Along weights the curvature is l2 and what the loss adds, at most the order of K's
    // mean diagonal, one; along the biases it is θ² p (1 - p). θ makes it no less than l2: were it less, steps that
    // suit the biases would be too long for weights, and in directions that K does not see they would grow without
    // bound.
    FX_FUNCTION double plain_theta(double l2) const { return sqrt(0.5 + (c_ > 1 ? c_ : 4) * l2); }

    // Other θ, the same biases.
    FX_BODY void scale_bias(const Team& team, double theta) {
        const Real change = theta_ / static_cast<Real>(theta);
        each_row(team, c_, [=, this](int c) {
            A[c * stride_ + m_] *= change;
            A_before_[c * stride_ + m_] *= change;
            A_older_[c * stride_ + m_] *= change;
        });
        theta_ = static_cast<Real>(theta);
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

    // R at the present point.
    FX_FUNCTION void residuals(const Team& team) {
        Loss::residual(team, images(), Z_, ZD_, Real(0), R_);
        team.sync();
    }

    // B times the gradient, and B times its change: themselves without a preconditioner.
    FX_FUNCTION Real* BG() const { return preconditioned_ ? BG_ : G_; }
    FX_FUNCTION Real* BY() const { return preconditioned_ ? BY_ : Y_; }

    // G, B G and K̂G from R at the present point. Returns <G, G> without biases.
    FX_BODY double gradient(const Team& team, double l2) {
        const Real *mask = is_image_, *a = A, *r = R_, penalty = static_cast<Real>(l2);
        Real* bg = BG();
        each<Real>(team, n_,
                   [=](int i) { store(bg + i, load<V>(r + i) + load<V>(a + i) * load<V>(mask + i) * penalty); });
        team.sync();
        each_row(team, c_, [=, this](int c) { bg[c * stride_ + m_] = theta_ * row_sum(R_ + c * stride_); });
        team.sync();
        Real* multiplied = preconditioned_ ? G_ : KG_;
        multiply(team, bg, multiplied);
        each_row(team, c_, [=, this](int c) { multiplied[c * stride_ + m_] = bg[c * stride_ + m_]; });
        team.sync();
        if (preconditioned_) {
            each_cell<Real>(team, c_, stride_, [=, this](int row, int i) {
                const int at = row * stride_ + i;
                store(KG_ + at, preconditioner_.seen(i, load<V>(bg + at), load<V>(G_ + at)));
            });
            team.sync();
            bg_square_ = penalised(team, bg, bg);
        }
        return penalised(team, bg, KG_);
    }

    // The one product of an iteration: B^-1 x with a preconditioner, K x without, of images.
    FX_FUNCTION void multiply(const Team& team, const Real* x, Real* out) const {
        preconditioned_ ? preconditioner_.apply(team, c_, x, out) : product(team, c_, x, stride_, K, out, stride_);
        team.sync();
    }

    // ‖∇_W f‖² from <G, G>; with a preconditioner that is another square, and this one takes a product.
    FX_BODY double gradient_square(const Team& team, double gg) const {
        if (!preconditioned_) return gg;
        team.sync();
        product(team, c_, BG_, stride_, K, ZD_, stride_);
        team.sync();
        const double square = penalised(team, BG_, ZD_);
        team.sync();
        return square;
    }

    FX_FUNCTION bool may_precondition() const { return m_ >= Preconditioner<Team, Real>::fewest; }

    FX_FUNCTION static bool near(double x, double y) { return x < 4 * y && y < 4 * x; }

    // From here on with a preconditioner for this l2 and the mean curvature at the present point, if one helps. θ makes
    // biases curve as much as weights. Returns <G, G> without biases, as all that follows.
    FX_BODY double precondition(const Team& team, double l2) {
        waited_ = 0;
        Loss::bias_hessian(team, images(), R_, bias_matrix_);
        const double curvature = lone_sum(c_, [=, this](int i) { return bias_matrix_[i * c_ + i]; }) / c_;
        team.sync();
        // Directions that curve less than K's rounding are not told apart.
        const double rounding = 4 * Format<float>::epsilon * curvature, made_for = l2 > rounding ? l2 : rounding;
        if (l2 < 4 * Format<Real>::epsilon * curvature) return stay_plain(team, l2);
        const bool alike = curvature < 4 * made_for;  // all directions curve much the same
        const bool have_it = preconditioned_ && near(made_for, l2_made_) && near(curvature, curvature_made_);
        if (alike || have_it) return gradient(team, l2);
        if (preconditioned_) settle_unseen(team, l2);
        preconditioned_ = preconditioner_.make(team, K, made_for, curvature / m_);
        if (!preconditioned_) return stay_plain(team, l2);
        l2_made_ = made_for;
        curvature_made_ = curvature;
        precision_ = Format<double>::epsilon * (1 + curvature / made_for);
        if (precision_ < Format<Real>::epsilon) precision_ = Format<Real>::epsilon;
        scale_bias(team, sqrt(1 / curvature));
        return settle_and_refresh(team, l2);
    }

    // From here on without one.
    FX_BODY double stay_plain(const Team& team, double l2) {
        if (preconditioned_) settle_and_refresh(team, l2);
        preconditioned_ = false;
        patience_ = 1 << 30;
        scale_bias(team, plain_theta(l2));
        return gradient(team, l2);
    }

    // With a preconditioner, directions that K does not see are taken to their optimum at once, A = -R/l2. Steps leave
    // them anywhere, and a large gradient there would drown what is seen of it. l2·M keeps these directions and takes
    // from others, so its fourth power hardly touches what is seen.
    FX_BODY void settle_unseen(const Team& team, double l2) {
        const Real *mask = is_image_, *r = R_, shrink = static_cast<Real>(l2_made_), penalty = static_cast<Real>(l2);
        Real *a = A, *x = BG_, *y = BY_;
        each<Real>(team, n_,
                   [=](int i) { store(x + i, (load<V>(r + i) + load<V>(a + i) * penalty) * load<V>(mask + i)); });
        team.sync();
        for (int power = 0; power < 4; ++power) {
            preconditioner_.apply(team, c_, x, y);
            team.sync();
            each<Real>(team, n_, [=](int i) { store(x + i, load<V>(y + i) * shrink); });
            team.sync();
        }
        each<Real>(team, n_,
                   [=](int i) { store(a + i, load<V>(a + i) - load<V>(x + i) * load<V>(mask + i) * (1 / penalty)); });
        team.sync();
    }

    FX_BODY double settle_and_refresh(const Team& team, double l2) {
        settle_unseen(team, l2);
        refresh(team);
        residuals(team);
        return gradient(team, l2);
    }

    // Whether rounding of B G, most of it unseen, might be a tenth of <G, G>.
    FX_FUNCTION bool drowned(double gg) const {
        return preconditioned_ && precision_ * bg_square_ > 0.1 * curvature_made_ / m_ * gg;
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

    // To the biases that `bias_gain` has just found: -H_b^+ g_b, and R there.
    FX_BODY void take_bias_gain(const Team& team) {
        if (team.rank() == 0) {
            for (int i = c_ - 1; i >= 0; --i) {  // L^T x = u
                double x = bias_vector_[i];
                for (int k = i + 1; k < c_; ++k) x -= bias_matrix_[k * c_ + i] * bias_vector_[k];
                bias_vector_[i] = x / bias_matrix_[i * c_ + i];
            }
            for (int i = 0; i < c_; ++i) A[i * stride_ + m_] -= static_cast<Real>(bias_vector_[i]) / theta_;
        }
        team.sync();
        for (int c = 0; c < c_; ++c) {
            const Real b = static_cast<Real>(bias_vector_[c]);
            Real* z = Z_ + c * stride_;
            each<Real>(team, stride_, [=](int i) { store(z + i, load<V>(z + i) - b); });
        }
        team.sync();
        residuals(team);
    }

    // Minimise until the bound on the gap holds; returns the objective followed so far.
    FX_BODY double search(const Team& team, double l2, double tol, int max_iter, bool& converged) {
        residuals(team);
        double gg = gradient(team, l2);
        Pair pair;
        converged = false;
        double known = objective;  // when it was last computed
        double look = 1e300;       // at a <G, G> no larger than this
        bool at_best_bias = false;
        int settlings = 10;  // that may yet help
        const auto begin_anew = [&](double square) {
            gg = square;
            pair.known = false;
            look = 1e300;
        };
        while (true) {
            // f(W, b) - f* ≤ ‖∇_W f‖² / (2 l2) where the bias is the best for W; what the bias can gain is added. The
            // logarithms of f are spared until the bound is near. With a preconditioner <G, G> is at most that square
            // over l2, and the square is spared, too; but there weights settle before the biases, which are taken to
            // their best before it counts.
            if (gg * (preconditioned_ ? l2_made_ : 1) <= 2 * l2 * tol * known && gg <= look) {
                const double square = gradient_square(team, gg);
                known = value(team, l2);
                const double bound = (square > 0 ? square : 0) / (2 * l2);
                if (bound <= tol * known && bound + bias_gain(team) <= tol * known) {
                    if (!preconditioned_ || at_best_bias) {
                        converged = true;
                        return known;
                    }
                    take_bias_gain(team);
                    begin_anew(gradient(team, l2));
                    at_best_bias = true;
                    continue;
                }
                if (preconditioned_) look = 0.3 * gg;
            }
            if (iterations >= max_iter) break;
            if (waited_ >= patience_ && may_precondition()) begin_anew(precondition(team, l2));
            if (settlings > 0 && drowned(gg)) {
                begin_anew(settle_and_refresh(team, l2));
                settlings = drowned(gg) ? 0 : settlings - 1;  // what is left is not unseen, but hardly seen
            }

            const Line along = direction(team, pair, l2);
            const double t = along.slope < 0 ? line(team, l2, along.with_a, along.dd, along.slope, !pair.known) : 0;
            if (!(t > 0)) {  // no descent that this precision can see
                if (!pair.known && !preconditioned_) break;
                residuals(team);
                begin_anew(pair.known ? gradient(team, l2) : stay_plain(team, l2));
                continue;
            }
            at_best_bias = false;
            ++iterations;
            ++waited_;
            a_norm_ += t * (2 * along.with_a + t * along.dd);
            gg = step(team, static_cast<Real>(l2), t, along.slope, pair);
            // A long step has taken what is unseen as far beyond its optimum.
            if (preconditioned_ && t > 4) begin_anew(settle_and_refresh(team, l2));
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
            // No curvature is below l2, measured in B, but, perhaps, along the biases.
            const double longest = (preconditioned_ ? l2_made_ : 1) / l2, measured = pair.dy / pair.yy,
                         gamma = measured < longest ? measured : longest;
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
        const Real *g = G_, *bg = BG(), *kg = KG_, *y = Y_, *ky = KY_, *a = A, *mask = is_image_, *bias = row_bias_;
        Real *d = D_, *kd = KD_, *zd = ZD_;
        V slope = V{}, with_a = V{}, dd = V{};
        each_cell<Real>(team, c_, stride_, [&](int row, int i) {
            const int at = row * stride_ + i;
            const V d_new = load<V>(g + at) * of_g + load<V>(y + at) * of_y + load<V>(d + at) * of_d;
            const V kd_new = load<V>(kg + at) * of_g + load<V>(ky + at) * of_y + load<V>(kd + at) * of_d;
            store(d + at, d_new);
            store(kd + at, kd_new);
            store(zd + at, kd_new + bias[row]);
            const V image = kd_new * load<V>(mask + i);
            slope += kd_new * load<V>(bg + at);
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
        const Real *d = D_, *kd = KD_, *zd = ZD_, *r = R_, *mask = is_image_;
        Real *a = A, *z = Z_, *g = G_, *y = Y_, *kg = KG_, *ky = KY_, *bg = BG(), *by = BY();
        // Biases come last into the rows: the pass over the images writes where they stand, too.
        each_row(team, c_, [=, this](int c) {
            const Real bias = theta_ * row_sum(R_ + c * stride_);
            row_bias_[c] = bias;
            row_change_[c] = (bias - bg[c * stride_ + m_]) * over_t;
        });
        team.sync();
        each_cell<Real>(team, c_, stride_, [=, this](int row, int i) {
            const int at = row * stride_ + i;
            const V a_new = load<V>(a + at) + load<V>(d + at) * t;
            const V bg_new = load<V>(r + at) + a_new * load<V>(mask + i) * l2;
            store(a + at, a_new);
            store(z + at, load<V>(z + at) + load<V>(zd + at) * t);
            store(by + at, (bg_new - load<V>(bg + at)) * over_t);
            store(bg + at, bg_new);
        });
        team.sync();
        each_row(team, c_, [=, this](int c) {
            bg[c * stride_ + m_] = row_bias_[c];
            by[c * stride_ + m_] = row_change_[c];
        });
        team.sync();
        multiply(team, bg, ky);
        each_row(team, c_, [=, this](int c) { ky[c * stride_ + m_] = row_bias_[c]; });
        team.sync();
        V dg = V{}, yg = V{}, yy = V{}, gg = V{};
        const auto finish = [&](int at, int i, V kg_new) {
            const V bg_new = load<V>(bg + at), ky_new = (kg_new - load<V>(kg + at)) * over_t;
            store(ky + at, ky_new);
            store(kg + at, kg_new);
            dg += load<V>(kd + at) * bg_new;
            yg += ky_new * bg_new;
            yy += ky_new * load<V>(by + at);
            gg += kg_new * bg_new * load<V>(mask + i);
        };
        if (preconditioned_) {
            V square = V{};
            each_cell<Real>(team, c_, stride_, [&](int row, int i) {
                const int at = row * stride_ + i;
                const V g_new = load<V>(ky + at), bg_new = load<V>(bg + at);
                square += bg_new * bg_new * load<V>(mask + i);
                store(y + at, (g_new - load<V>(g + at)) * over_t);
                store(g + at, g_new);
                finish(at, i, preconditioner_.seen(i, bg_new, g_new));
            });
            bg_square_ = sum(team, square);
        } else {
            each_cell<Real>(team, c_, stride_, [&](int row, int i) {
                const int at = row * stride_ + i;
                finish(at, i, load<V>(ky + at));
            });
        }
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
    int patience_;    // iterations that cost as much as a preconditioner: waiting for it at most doubles the cost
    int waited_ = 0;  // iterations since the last one was made
    bool preconditioned_ = false;
    double l2_made_ = 0, curvature_made_ = 0;  // what the preconditioner was made for
    double precision_ = 0;                     // of the preconditioner: its inverse's condition, or that of its numbers
    double bg_square_ = 0;                     // sum of squares of B G, kept with a preconditioner
    Preconditioner<Team, Real> preconditioner_;
    double l2_last_ = 0, l2_before_ = 0, l2_older_ = 0;
    double a_norm_ = 0;
    Real theta_ = 1;
    Real *per_weight_, *is_image_, *A_before_, *Z_before_, *A_older_, *Z_older_, *Z_, *R_, *G_, *KG_, *ZD_, *D_, *KD_,
        *Y_, *KY_, *BG_, *BY_, *row_bias_, *row_change_;
    double *bias_matrix_, *bias_vector_, *shared_;
};

}  // namespace FX_NAMESPACE
