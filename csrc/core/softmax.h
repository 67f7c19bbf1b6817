// The losses of the logistic probe, as the solver needs them: residuals at a point along a line, the line's slope and
// curvature, the mean loss. Z (c x stride) are logits, images innermost; `label` holds each image's class as a number
// (-1: padding), `weight` that of its loss (1/m), 0 for padding.
//
// Probabilities that miss one by less than a rounding error still have exact residuals: p_y - 1 is minus the sum of the
// other probabilities, and the loss is log(1 + that sum), never log of something near one.
#pragma once

#include "linalg.h"

namespace FX_NAMESPACE {

template <class Real>
struct Images {
    int c;       // rows of Z: classes seen, or 1 in the binary form
    int stride;  // padded number of images
    const Real* label;
    const Real* weight;
    const Real* per_weight;  // 1/weight, 0 where that is 0
};

struct Softmax {
    // R = weight·(P - Y) at Z + t·D; returns Σ R·D.
    template <class Team, class Real>
    FX_BODY static double residual(const Team& team, const Images<Real>& of, const Real* Z, const Real* D, Real t,
                                   Real* R) {
        constexpr int W = Team::template width<Real>;
        using V = typename Lanes<Real, W>::V;
        return total<Real>(team, of.stride, [=](int i) {
            const V label = load<V>(of.label + i);
            V top = V{} + Real(-3e38);
            for (int c = 0, at = i; c < of.c; ++c, at += of.stride) {
                const V z = load<V>(Z + at) + load<V>(D + at) * t;
                store(R + at, z);
                top = larger(top, z);
            }
            V own = V{}, others = V{};
            for (int c = 0, at = i; c < of.c; ++c, at += of.stride) {
                const V e = exponential<Real, W>(load<V>(R + at) - top);
                store(R + at, e);
                const auto is_own = label == V{} + Real(c);
                own += is_own ? e : V{};
                others += is_own ? V{} : e;
            }
            const V scale = load<V>(of.weight + i) / (own + others);
            V slope = V{};
            for (int c = 0, at = i; c < of.c; ++c, at += of.stride) {
                const V r = (label == V{} + Real(c) ? -others : load<V>(R + at)) * scale;
                store(R + at, r);
                slope += r * load<V>(D + at);
            }
            return slope;
        });
    }

    // Σ weight·(D^T (diag p - p p^T) D), the second derivative of the mean loss along D, from R at that point.
    template <class Team, class Real>
    FX_BODY static double curvature(const Team& team, const Images<Real>& of, const Real* R, const Real* D) {
        using V = typename Lanes<Real, Team::template width<Real>>::V;
        return total<Real>(team, of.stride, [=](int i) {
            const V label = load<V>(of.label + i), weight = load<V>(of.weight + i);
            V first = V{}, second = V{};
            for (int c = 0, at = i; c < of.c; ++c, at += of.stride) {
                const V p = load<V>(R + at) + (label == V{} + Real(c) ? weight : V{});
                const V d = load<V>(D + at);
                first += p * d;
                second += p * d * d;
            }
            return weight > V{} ? second - first * first / weight : V{};
        });
    }

    // Σ weight·loss at Z.
    template <class Team, class Real>
    FX_BODY static double loss(const Team& team, const Images<Real>& of, const Real* Z) {
        constexpr int W = Team::template width<Real>;
        using V = typename Lanes<Real, W>::V;
        return total<Real>(team, of.stride, [=](int i) {
            const V label = load<V>(of.label + i);
            V top = V{} + Real(-3e38), own_z = V{};
            for (int c = 0, at = i; c < of.c; ++c, at += of.stride) {
                const V z = load<V>(Z + at);
                top = larger(top, z);
                own_z = label == V{} + Real(c) ? z : own_z;
            }
            // own + others ≥ 1 since the largest term is one; where it is the own term, own - 1 is 0 exactly.
            V rest = exponential<Real, W>(own_z - top) - Real(1);
            for (int c = 0, at = i; c < of.c; ++c, at += of.stride) {
                const V e = exponential<Real, W>(load<V>(Z + at) - top);
                rest += label == V{} + Real(c) ? V{} : e;
            }
            const V weight = load<V>(of.weight + i);
            return weight > V{} ? weight * (log_one_plus<Real, W>(larger(rest, V{})) + (top - own_z)) : V{};
        });
    }

    // Lower triangle of the Hessian of the mean loss with respect to the biases, from R, into H (c x c). It is a
    // graph's Laplacian: entry (a, b) is -Σ weight·p_a·p_b, the diagonal is minus the rest of its row, so nothing
    // cancels.
    template <class Team, class Real>
    FX_BODY static void bias_hessian(const Team& team, const Images<Real>& of, const Real* R, double* H) {
        const int c = of.c;
        each_row(team, c * c, [=](int at) {
            const int a = at / c, b = at % c;
            if (a > b) H[at] = -coupling<Team>(of, R, a, b);
        });
        team.sync();
        each_row(team, c, [=](int a) {
            double sum = 0;
            for (int b = 0; b < c; ++b) sum += b < a ? H[a * c + b] : b > a ? H[b * c + a] : 0;
            H[a * c + a] = -sum;
        });
        team.sync();
    }

  private:
    // Σ weight·p_a·p_b, a ≠ b, by one member alone.
    template <class Team, class Real>
    FX_FUNCTION static double coupling(const Images<Real>& of, const Real* R, int a, int b) {
        constexpr int W = Team::template width<Real>;
        using V = typename Lanes<Real, W>::V;
        const Real *ra = R + static_cast<std::int64_t>(a) * of.stride,
                   *rb = R + static_cast<std::int64_t>(b) * of.stride;
        V sum = V{};
        for (int i = 0; i < of.stride; i += W) {
            const V label = load<V>(of.label + i), weight = load<V>(of.weight + i);
            const V pa = load<V>(ra + i) + (label == V{} + Real(a) ? weight : V{});
            const V pb = load<V>(rb + i) + (label == V{} + Real(b) ? weight : V{});
            sum += pa * (pb * load<V>(of.per_weight + i));
        }
        return across<Real, W>(sum);
    }
};

// One row of logits z for two classes: loss log(1 + exp(-s·z)), s = -1 for label 0 and +1 for label 1.
struct Binary {
    template <class Team, class Real>
    FX_BODY static double residual(const Team& team, const Images<Real>& of, const Real* Z, const Real* D, Real t,
                                   Real* R) {
        constexpr int W = Team::template width<Real>;
        using V = typename Lanes<Real, W>::V;
        return total<Real>(team, of.stride, [=](int i) {
            const auto positive = load<V>(of.label + i) > V{};
            const V d = load<V>(D + i), z = load<V>(Z + i) + d * t;
            const V wrong = positive ? -z : z;  // the logit of the wrong class
            const V e = exponential<Real, W>(wrong > V{} ? -wrong : wrong);
            const V p = (wrong > V{} ? V{} + Real(1) : e) / (e + Real(1));
            const V r = (positive ? -p : p) * load<V>(of.weight + i);
            store(R + i, r);
            return r * d;
        });
    }

    template <class Team, class Real>
    FX_BODY static double curvature(const Team& team, const Images<Real>& of, const Real* R, const Real* D) {
        using V = typename Lanes<Real, Team::template width<Real>>::V;
        return total<Real>(team, of.stride, [=](int i) {
            const V weight = load<V>(of.weight + i), r = load<V>(R + i), d = load<V>(D + i);
            const V size = r > V{} ? r : -r;
            return weight > V{} ? size * (V{} + Real(1) - size / weight) * d * d : V{};
        });
    }

    template <class Team, class Real>
    FX_BODY static double loss(const Team& team, const Images<Real>& of, const Real* Z) {
        constexpr int W = Team::template width<Real>;
        using V = typename Lanes<Real, W>::V;
        return total<Real>(team, of.stride, [=](int i) {
            const V z = load<V>(Z + i), wrong = load<V>(of.label + i) > V{} ? -z : z;
            const V e = exponential<Real, W>(wrong > V{} ? -wrong : wrong);
            return load<V>(of.weight + i) * (log_one_plus<Real, W>(e) + larger(wrong, V{}));
        });
    }

    template <class Team, class Real>
    FX_BODY static void bias_hessian(const Team& team, const Images<Real>& of, const Real* R, double* H) {
        if (team.rank() == 0) {
            H[0] = lone_sum(of.stride, [=](int i) {
                const double w = of.weight[i], r = R[i] > 0 ? R[i] : -R[i];
                return w > 0 ? r * (1 - r / w) : 0;
            });
        }
        team.sync();
    }
};

}  // namespace FX_NAMESPACE
