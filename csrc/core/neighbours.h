// The k images of largest inner product with each query, among all n, without the n x q matrix of products: a team
// takes a block of queries and a share of the images, a tile of products at a time, and keeps each query's best so far.
// Of equal products the image of the lower row is nearer. An entry of a tile is added up in one order, wherever the
// image lies, so equal images have equal products, bit for bit.
#pragma once

#include <cmath>

#include "../ops.h"
#include "linalg.h"

namespace FX_NAMESPACE {

using fastxfer::NeighboursParams;

constexpr int neighbour_tile = NeighboursParams::tile;

// out (rows x neighbour_tile) = A (rows x dim) B^T (B columns x dim). Barriers before and after are the caller's.
template <class Team>
FX_BODY void tile_products(const Team& team, int rows, const float* A, int columns, const float* B, std::int64_t dim,
                           float* out) {
    each_row(team, rows * columns, [&](int at) {
        const int row = at / columns, column = at % columns;
        out[row * neighbour_tile + column] = lone_inner(team, static_cast<int>(dim), A + row * dim, B + column * dim);
    });
}

template <class Team>
struct NeighboursMemory {
    FX_FUNCTION explicit NeighboursMemory(Workspace& memory)
        : products(memory.take<float>(neighbour_tile * neighbour_tile)), found(memory.take<int>(neighbour_tile)) {}

    float* products;
    int* found;  // neighbours that a query has so far
};

// Puts (product, image) into a list of `found` of at most k, largest first.
FX_FUNCTION int keep_nearest(float product, std::int64_t image, int k, int found, float* products,
                             std::int64_t* images) {
    if (found == k && !(product > products[k - 1])) return found;
    int place = found < k ? found++ : k - 1;
    for (; place > 0 && product > products[place - 1]; --place) {
        products[place] = products[place - 1];
        images[place] = images[place - 1];
    }
    products[place] = product;
    images[place] = image;
    return found;
}

// Item e: the share e % shares of the images for the block e / shares of the queries.
template <class Team>
FX_BODY void neighbours_item(const Team& team, const NeighboursParams& p, std::int64_t e, void* block) {
    Workspace memory(block);
    const NeighboursMemory<Team> own(memory);
    const std::int64_t first_query = e / p.shares * neighbour_tile, share = e % p.shares;
    const std::int64_t first = p.n * share / p.shares, last = p.n * (share + 1) / p.shares;
    const int queries = p.q - first_query < neighbour_tile ? static_cast<int>(p.q - first_query) : neighbour_tile;
    each_row(team, queries, [&](int j) { own.found[j] = 0; });
    for (std::int64_t image = first; image < last; image += neighbour_tile) {
        const int images = last - image < neighbour_tile ? static_cast<int>(last - image) : neighbour_tile;
        tile_products(team, queries, p.query + first_query * p.dim, images, p.images + image * p.dim, p.dim,
                      own.products);
        team.sync();
        each_row(team, queries, [&](int j) {
            const std::int64_t list = ((first_query + j) * p.shares + share) * p.k;
            int found = own.found[j];
            for (int i = 0; i < images; ++i) {
                found = keep_nearest(own.products[j * neighbour_tile + i], image + i, p.k, found, p.products + list,
                                     p.rows + list);
            }
            own.found[j] = found;
        });
        team.sync();
    }
    each_row(team, queries, [&](int j) {  // a share may hold fewer images than asked for
        const std::int64_t list = ((first_query + j) * p.shares + share) * p.k;
        for (int i = own.found[j]; i < p.k; ++i) {
            p.products[list + i] = -INFINITY;
            p.rows[list + i] = -1;
        }
    });
}

template <class Team>
FX_BODY std::size_t neighbours_bytes(const NeighboursParams&) {
    Workspace memory(nullptr);
    const NeighboursMemory<Team> own(memory);
    return memory.used();
}

}  // namespace FX_NAMESPACE
