// Inner products of an episode's own images, read where they lie. Every product is one chain of additions over the
// dimensions, whichever tile it is made in: equal images have equal products, to the bit.
#pragma once

#include "../core/workspace.h"
#include "../ops.h"
#include "half.h"

namespace FX_NAMESPACE {

using fastxfer::Embeddings;
using fastxfer::ProductsParams;

// So many products are made at a time: their sums and what they are made of fill the registers.
constexpr int tile_rows = 6, tile_columns = FX_REGISTER_BYTES == 64 ? 4 : 2;

// Images to come, which no cache may hold yet; null for none.
template <class Stored>
struct Ahead {
    const Stored* const* images;
    // Each of their lines is asked for twice, some time apart: what finds the queue to memory full is dropped.
    FX_FUNCTION void ask(std::int64_t k) const {
        if (images == nullptr) return;
        for (int v = 0; v < tile_columns; ++v) {
            __builtin_prefetch(images[v] + k, 0, 2);
            __builtin_prefetch(images[v] + (k ^ 64), 0, 2);
        }
    }
};

// Columns of a tile as numbers to compute with, ready in memory.
template <class Real>
struct Ready {
    using V = typename Lanes<Real, SerialTeam::width<Real>>::V;
    const Real* at[tile_columns];
    FX_FUNCTION V lanes(int v, std::int64_t k) const { return load<V>(at[v] + k); }
    FX_FUNCTION V last_lanes(int v, std::int64_t k, int count) const { return load_some<V>(at[v] + k, count); }
};

// Columns of float16, widened on the way into the registers; and kept in memory, if other tiles will want them.
struct Widening {
    using V = typename Lanes<float, SerialTeam::width<float>>::V;
    const Half* from[tile_columns];
    const float* mean;
    float* slots;
    std::int64_t slot;
    bool keep;
    FX_FUNCTION V lanes(int v, std::int64_t k) const {
        const V value = widened_lanes(from[v] + k) - load<V>(mean + k);
        if (keep) store(slots + v * slot + k, value);
        return value;
    }
    FX_FUNCTION V last_lanes(int v, std::int64_t k, int count) const {
        Half some[SerialTeam::width<float>] = {};
        for (int i = 0; i < count; ++i) some[i] = from[v][k + i];
        const V value = widened_lanes(some) - load_some<V>(mean + k, count);
        if (keep) store(slots + v * slot + k, value);  // a slot has room for whole vectors
        return value;
    }
};

// out(r, v) = <left[r], right v>
template <class Real, int MR, int NV, class Right, class Stored, class Out>
FX_BODY void dot_tile(const Real* const* left, const Right& right, const Ahead<Stored>& ahead, std::int64_t dim,
                      const Out& out) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    V sum[MR][NV] = {}, b[NV];
    std::int64_t k = 0;
    for (; k + W <= dim; k += W) {
        for (int v = 0; v < NV; ++v) b[v] = right.lanes(v, k);
        ahead.ask(k);
        for (int r = 0; r < MR; ++r) {
            const V a = load<V>(left[r] + k);
            for (int v = 0; v < NV; ++v) sum[r][v] += a * b[v];
        }
    }
    if (k < dim) {
        const int count = static_cast<int>(dim - k);
        for (int v = 0; v < NV; ++v) b[v] = right.last_lanes(v, k, count);
        for (int r = 0; r < MR; ++r) {
            const V a = load_some<V>(left[r] + k, count);
            for (int v = 0; v < NV; ++v) sum[r][v] += a * b[v];
        }
    }
    for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v) out(r, v, across<Real, W>(sum[r][v]));
    }
}

template <class Real, int NV, class... Rest>
FX_FUNCTION void dot_tiles(int rows, const Rest&... rest) {
    switch (rows) {
        case 1:
            return dot_tile<Real, 1, NV>(rest...);
        case 2:
            return dot_tile<Real, 2, NV>(rest...);
        case 3:
            return dot_tile<Real, 3, NV>(rest...);
        case 4:
            return dot_tile<Real, 4, NV>(rest...);
        case 5:
            return dot_tile<Real, 5, NV>(rest...);
        default:
            return dot_tile<Real, 6, NV>(rest...);
    }
}

// Columns of `all_products` that are used where they lie; `at(j)` points to one.
template <class At>
struct AsTheyLie {
    At at;
    FX_FUNCTION const auto* stored(int j) const { return at(j); }
    FX_FUNCTION const auto* take(int j, int) const { return at(j); }
};
template <class At>
AsTheyLie(At) -> AsTheyLie<At>;

// Embeddings of an episode by number: where they lie, or float16 ones widened, about the pool's mean, into `slots`.
template <class Stored>
class Reader {
  public:
    using Real = computed_in<Stored>;

    FX_FUNCTION Reader(const Embeddings& from, std::int64_t dim, Workspace& memory, int slots)
        : from_(from), dim_(dim), slot_(spread_row<Real>(dim)) {
        if constexpr (std::is_same_v<Stored, Half>) slots_ = memory.take<Real>(slots * slot_);
    }

    FX_FUNCTION const Stored* stored(std::int64_t image) const {
        return static_cast<const Stored*>(from_.data) + image * from_.row;
    }

    // What widens images index[0 … width-1] into slots from `slot` on.
    FX_FUNCTION Widening widening(const std::int64_t* index, int width, int slot, bool keep) const
        requires std::is_same_v<Stored, Half>
    {
        Widening made{{}, from_.mean, slots_ + slot * slot_, slot_, keep};
        for (int v = 0; v < tile_columns; ++v) made.from[v] = stored(index[v < width ? v : 0]);
        return made;
    }

    // Good until its slot is taken again.
    FX_FUNCTION const Real* take(std::int64_t image, int slot) const {
        if constexpr (std::is_same_v<Stored, Half>) {
            Real* to = slots_ + slot * slot_;
            widen(stored(image), from_.mean, dim_, to);
            return to;
        } else {
            (void)slot;
            return stored(image);
        }
    }

    // Images into the slots of their numbers.
    FX_FUNCTION void hold(int count, const std::int64_t* index) const {
        if constexpr (std::is_same_v<Stored, Half>) {
            for (int i = 0; i < count; ++i) {
                const Half* next = stored(index[i + 1 < count ? i + 1 : i]);
                widen(stored(index[i]), from_.mean, dim_, slots_ + i * slot_, next);
            }
        }
    }

    // Image `image`, which slot `slot` holds.
    FX_FUNCTION const Real* held(std::int64_t image, int slot) const {
        if constexpr (std::is_same_v<Stored, Half>) {
            (void)image;
            return slots_ + slot * slot_;
        } else {
            (void)slot;
            return stored(image);
        }
    }

  private:
    const Embeddings from_;
    std::int64_t dim_, slot_;
    Real* slots_ = nullptr;
};

// out(r, v) = <left(r), right.take(v, slot)> for rows 0 … rows-1 and columns 0 … columns-1; `right.stored(v)` is where
// that will be read from. A slot is taken again when its column is done with. Columns from a `fresh` one on are widened
// by the first tile that meets them. Tiles that `known(rows up to, columns from, columns up to)` names are left out.
template <class Real, class Left, class Right, class Known, class Out>
FX_BODY void all_products(int rows, int columns, std::int64_t dim, const Left& left, const Right& right,
                          const Known& known, const Out& out) {
    constexpr bool widens = requires { right.widening(0, 1, true); };
    const int tiles = (rows + tile_rows - 1) / tile_rows;
    for (int j = 0; j < columns;) {
        const int width = j + tile_columns <= columns ? tile_columns : 1;
        decltype(right.stored(0)) next[tile_columns];
        bool fresh = false;
        if constexpr (widens) fresh = right.fresh(j);
        Ready<Real> these;
        for (int v = 0; v < tile_columns; ++v) {
            if (!fresh) these.at[v] = v < width ? right.take(j + v, v) : these.at[0];
            next[v] = right.stored(j + width + v < columns ? j + width + v : columns - 1);
        }
        for (int tile = tiles - 1; tile >= 0; --tile) {  // rows shared out evenly: 25 are five times 5
            const int from = static_cast<int>(static_cast<std::int64_t>(rows) * tile / tiles);
            const int to = static_cast<int>(static_cast<std::int64_t>(rows) * (tile + 1) / tiles);
            if (known(to, j, j + width)) continue;
            const Real* own[tile_rows];
            for (int r = 0; r < to - from; ++r) own[r] = left(from + r);
            const auto write = [&out, from, j](int r, int v, Real value) { out(from + r, j + v, value); };
            const Ahead soon{tile == tiles - 1 ? next : nullptr};
            const auto dot = [&](const auto& columns_here) {
                width > 1 ? dot_tiles<Real, tile_columns>(to - from, own, columns_here, soon, dim, write)
                          : dot_tiles<Real, 1>(to - from, own, columns_here, soon, dim, write);
            };
            if constexpr (widens) {
                if (fresh && tile == tiles - 1) {
                    const Widening columns_here = right.widening(j, width, tiles > 1);
                    for (int v = 0; v < tile_columns; ++v) these.at[v] = columns_here.slots + v * columns_here.slot;
                    dot(columns_here);
                    continue;
                }
            }
            dot(these);
        }
        j += width;
    }
}

// Support and queries of an episode, one behind the other; the support is read once and held.
template <class Stored>
struct EpisodeImages {
    Reader<Stored> images;
    const std::int64_t *support, *query;
    int m;

    FX_FUNCTION EpisodeImages(const ProductsParams& p, std::int64_t e, Workspace& memory)
        : images(p.images, p.dim, memory, p.m + tile_columns),
          support(p.support + e * p.m),
          query(p.query + e * p.q),
          m(p.m) {}

    FX_FUNCTION const auto* left(int i) const { return images.held(support[i], i); }
    FX_FUNCTION const Stored* stored(int j) const { return images.stored(j < m ? support[j] : query[j - m]); }
    FX_FUNCTION const auto* take(int j, int slot) const {
        return j < m ? left(j) : images.take(query[j - m], m + slot);
    }
    FX_FUNCTION bool fresh(int j) const { return j >= m; }
    FX_FUNCTION Widening widening(int j, int width, bool keep) const
        requires std::is_same_v<Stored, Half>
    {
        return images.widening(query + j - m, width, m, keep);
    }
};

template <class Stored>
std::size_t products_bytes(const ProductsParams& p) {
    Workspace memory(nullptr);
    const EpisodeImages<Stored> images(p, 0, memory);
    return memory.used();
}

// Block of episode e: products of its support with its support, then with its queries.
template <class Stored>
void products_episode(const ProductsParams& p, std::int64_t e, void* scratch) {
    using Real = computed_in<Stored>;
    Workspace memory(scratch);
    const EpisodeImages<Stored> images(p, e, memory);
    images.images.hold(p.m, images.support);
    const int m = p.m, columns = m + p.q;
    Real* block = static_cast<Real*>(p.out) + e * m * columns;
    const auto left = [&](int i) { return images.left(i); };
    // Known from the other side of the diagonal.
    const auto known = [=](int rows_end, int first, int last) { return rows_end <= first && last <= m; };
    all_products<Real>(m, columns, p.dim, left, images, known, [=](int i, int j, Real value) {
        block[static_cast<std::int64_t>(i) * columns + j] = value;
        if (j < m) block[static_cast<std::int64_t>(j) * columns + i] = value;
    });
}

}  // namespace FX_NAMESPACE
