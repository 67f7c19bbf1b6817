// Householder's reduction of a symmetric matrix to a tridiagonal one, F = Q T Q^T (Golub & Van Loan, Matrix
// Computations, section 8.3): 2·m³ flops once, 4/3·m³ for Q, and then F + s·I is as good as factored for every s.
#pragma once

#include "linalg.h"

namespace FX_NAMESPACE {

// Of F, m rows of `stride` doubles, padded with zeros. Steps are written for the whole team, barriers included.
template <class Team>
struct Tridiagonal {
    static constexpr int W = Team::template width<double>;
    static constexpr int P = Team::template panel<double>;
    using V = typename Lanes<double, W>::V;

    FX_FUNCTION Tridiagonal(Workspace& memory, int m, int stride)
        : m(m),
          stride(stride),
          diagonal(memory.take<double>(m)),
          beside(memory.take<double>(m)),
          beta(memory.take<double>(m)),
          w(memory.take<double>(2 * static_cast<std::int64_t>(stride))) {}

    // F is overwritten: row k holds v of reflector k, I - beta_k v v^T, from start(k + 1) on; v is zero up to place k.
    FX_BODY void reduce(const Team& team, double* F) const {
        each_row(team, 2 * stride, [=, this](int i) { w[i] = 0; });
        team.sync();
        for (int k = 0; k + 2 < m; ++k) {
            reflector(team, F + at(k), k);
            const double* w_before = w + (k + 1) % 2 * stride;
            double* w_now = w + k % 2 * stride;
            const double* v_before = k > 0 ? F + at(k - 1) : w_before;  // whose w is zero
            multiply(team, F, k, v_before, w_before, w_now);
            // The next row is needed at once; those below get what this reflector changes with the next product.
            double* next = F + at(k + 1);
            const double *v = F + at(k), v_next = v[k + 1], w_next = w_now[k + 1];
            const int from = start(k + 1);
            each<double>(team, stride - from, [=](int j) {
                j += from;
                store(next + j, load<V>(next + j) - load<V>(w_now + j) * v_next - load<V>(v + j) * w_next);
            });
            team.sync();
        }
        if (team.rank() == 0) {
            const int last = m - 1;
            if (m > 1) {
                diagonal[m - 2] = F[at(m - 2) + m - 2];
                beside[m - 2] = F[at(m - 2) + last];
            }
            const double changed = m > 2 ? 2 * F[at(m - 3) + last] * w[(m - 3) % 2 * stride + last] : 0;
            diagonal[last] = F[at(last) + last] - changed;
        }
        team.sync();
    }

    // x := Q^T x, by one member alone; x is padded like a row of F.
    FX_FUNCTION void turn(const Team& team, const double* F, double* x) const {
        for (int k = 0; k + 2 < m; ++k) {
            const int from = start(k + 1);
            const double* v = F + at(k);
            const double scale = beta[k] * lone_inner(team, stride - from, v + from, x + from);
            for (int j = from; j < stride; j += W) store(x + j, load<V>(x + j) - load<V>(v + j) * scale);
        }
    }

    // Q^T into the first m columns of `out`, the others zero.
    FX_BODY void expand(const Team& team, const double* F, const Panels<Team, double>& out) const {
        each_row(team, (m + 3) / 4, [&](int block) {
            switch (m - 4 * block) {
                case 1:
                    return expand_rows<1>(F, out, 4 * block);
                case 2:
                    return expand_rows<2>(F, out, 4 * block);
                case 3:
                    return expand_rows<3>(F, out, 4 * block);
                default:
                    return expand_rows<4>(F, out, 4 * block);
            }
        });
        team.sync();
    }

    // inverse := 1 / the pivots of T + shift·I = L D L^T, by one member alone; a pivot below `least` counts as `least`.
    FX_FUNCTION void invert(double shift, double least, double* inverse) const {
        double carried = 0;
        for (int i = 0; i < m; ++i) {
            double pivot = diagonal[i] + shift - carried;
            pivot = pivot > least ? pivot : least;
            inverse[i] = 1 / pivot;
            if (i + 1 < m) carried = beside[i] * beside[i] * inverse[i];
        }
    }

    // About the smallest eigenvalue of the matrix that `invert` was told of, by a few steps of the inverse power method
    // in x (m), by one member alone.
    FX_FUNCTION double smallest(const double* inverse, double* x) const {
        double value = 1;
        for (int i = 0; i < m; ++i) x[i] = (i * 7 % 11 - 5.5) / sqrt(11.0 * m);
        for (int step = 0; step < 4; ++step) {
            solve(inverse, x, x);
            const double length = sqrt(lone_sum(m, [=](int i) { return x[i] * x[i]; }));
            for (int i = 0; i < m; ++i) x[i] /= length;
            value = 1 / length;
        }
        return value;
    }

    // out := (T + shift·I)^-1 x, by one member alone; out may be x.
    FX_FUNCTION void solve(const double* inverse, const double* x, double* out) const {
        double value = 0;
        for (int i = 0; i < m; ++i) {
            value = i > 0 ? x[i] - beside[i - 1] * inverse[i - 1] * value : x[0];
            out[i] = value;
        }
        value = 0;
        for (int i = m - 1; i >= 0; --i) {
            value = i + 1 < m ? (out[i] - beside[i] * value) * inverse[i] : out[i] * inverse[i];
            out[i] = value;
        }
    }

    int m, stride;
    double *diagonal, *beside, *beta;

  private:
    FX_FUNCTION std::int64_t at(int row) const { return static_cast<std::int64_t>(row) * stride; }
    FX_FUNCTION static int start(int column) { return column / P * P; }

    // The reflector that leaves of row k, right of the diagonal, only its first number.
    FX_BODY void reflector(const Team& team, double* row, int k) const {
        const int from = start(k + 1);
        const double head = row[k + 1], kept = row[k];
        team.sync();
        each_row(team, k + 2 - from, [=](int j) { row[from + j] = 0; });
        team.sync();
        const double tail = inner(team, stride - from, row + from, row + from);
        if (team.rank() == 0) {
            const bool needed = tail > 1e-290;
            const double length = sqrt(head * head + tail), turned = head > 0 ? -length : length;
            diagonal[k] = kept;
            beside[k] = needed ? turned : head;
            row[k + 1] = head - turned;
            beta[k] = needed ? 2 / ((head - turned) * (head - turned) + tail) : 0;
        }
        team.sync();
    }

    // Rows below k get what the reflector before has changed, and w_now := p - (beta/2)(p·v) v with p = beta F v.
    FX_BODY void multiply(const Team& team, double* F, int k, const double* v_before, const double* w_before,
                          double* w_now) const {
        const int from = start(k + 1), rows = m - k - 1;
        const double* v = F + at(k);
        const double factor = beta[k];
        each_row(team, rows, [=, this](int r) {
            const int i = k + 1 + r;
            double* row = F + at(i);
            const double v_i = v_before[i], w_i = w_before[i];
            V even = V{}, odd = V{};
            int j = from;
            for (; j + W < stride; j += 2 * W) {
                const V a = load<V>(row + j) - load<V>(w_before + j) * v_i - load<V>(v_before + j) * w_i;
                const V b = load<V>(row + j + W) - load<V>(w_before + j + W) * v_i - load<V>(v_before + j + W) * w_i;
                store(row + j, a);
                store(row + j + W, b);
                even += a * load<V>(v + j);
                odd += b * load<V>(v + j + W);
            }
            for (; j < stride; j += W) {
                const V a = load<V>(row + j) - load<V>(w_before + j) * v_i - load<V>(v_before + j) * w_i;
                store(row + j, a);
                even += a * load<V>(v + j);
            }
            w_now[i] = factor * across<double, W>(even + odd);
        });
        each_row(team, k + 1 - from > 0 ? k + 1 - from : 0, [=](int j) { w_now[from + j] = 0; });
        team.sync();
        const double along = 0.5 * factor * inner(team, stride - from, w_now + from, v + from);
        each<double>(team, stride - from, [=](int j) {
            j += from;
            store(w_now + j, load<V>(w_now + j) - load<V>(v + j) * along);
        });
        team.sync();
    }

    // Rows r0 … r0 + R-1 of Q^T = … H_1 H_0, by one member alone: row r is that of I until reflector r - 1.
    template <int R>
    FX_BODY void expand_rows(const double* F, const Panels<Team, double>& out, int r0) const {
        for (int first = 0; first < stride; first += P) {
            double* to = out.at(r0, first);
            const int width = out.panel_width(first);
            for (int r = 0; r < R; ++r) {
                for (int j = 0; j < width; ++j) to[r * width + j] = first + j == r0 + r ? 1 : 0;
            }
        }
        for (int k = r0 + R - 2 < m - 3 ? r0 + R - 2 : m - 3; k >= 0; --k) {
            const double* v = F + at(k);
            const int from = start(k + 1);
            V sum[R] = {};
            for (int first = from; first < stride; first += P) {
                const double* row = out.at(r0, first);
                const int width = out.panel_width(first);
                for (int j = 0; j < width; j += W) {
                    const V here = load<V>(v + first + j);
                    for (int r = 0; r < R; ++r) sum[r] += load<V>(row + r * width + j) * here;
                }
            }
            double scale[R];
            for (int r = 0; r < R; ++r) scale[r] = beta[k] * across<double, W>(sum[r]);
            for (int first = from; first < stride; first += P) {
                double* row = out.at(r0, first);
                const int width = out.panel_width(first);
                for (int j = 0; j < width; j += W) {
                    const V here = load<V>(v + first + j);
                    for (int r = 0; r < R; ++r) {
                        store(row + r * width + j, load<V>(row + r * width + j) - here * scale[r]);
                    }
                }
            }
        }
    }

    double* w;  // of this reflector and of the one before
};

}  // namespace FX_NAMESPACE
