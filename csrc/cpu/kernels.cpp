// One instruction set's copy of the core; setup.py compiles this file once for each, with FX_NAMESPACE,
// FX_REGISTER_BYTES and FX_KERNELS set. No function of the C++ library that is not inlined may be used here (nor in
// core/): the linker would keep one copy of it, perhaps this one, for all.
#include "../core/knn.h"
#include "../core/logistic.h"
#include "../core/neighbours.h"
#include "../core/prototype.h"
#include "../core/ridge.h"
#include "dense.h"
#include "pool.h"
#include "products.h"
#include "skinny.h"
#include "weights.h"

namespace FX_NAMESPACE {
namespace {

using Team = SerialTeam;

std::size_t logistic_memory(const LogisticParams& p, bool wide) {
    if (p.episodes.gram_is_double) return logistic_bytes<double, double, Team>(p);
    return wide ? logistic_bytes<double, float, Team>(p) : logistic_bytes<float, float, Team>(p);
}

bool logistic(const LogisticParams& p, std::int64_t e, void* memory, bool wide) {
    if (p.episodes.gram_is_double) return logistic_episode<double, double>(Team{}, p, e, memory);
    return wide ? logistic_episode<double, float>(Team{}, p, e, memory)
                : logistic_episode<float, float>(Team{}, p, e, memory);
}

std::size_t ridge_memory(const RidgeParams& p) {
    return p.episodes.gram_is_double ? ridge_bytes<double, Team>(p) : ridge_bytes<float, Team>(p);
}

void ridge(const RidgeParams& p, std::int64_t e, void* memory) {
    p.episodes.gram_is_double ? ridge_episode<double>(Team{}, p, e, memory)
                              : ridge_episode<float>(Team{}, p, e, memory);
}

std::size_t prototype_memory(const PrototypeParams& p) {
    return p.episodes.gram_is_double ? prototype_bytes<double, double, Team>(p)
                                     : prototype_bytes<float, float, Team>(p);
}

void prototype(const PrototypeParams& p, std::int64_t e, void* memory) {
    p.episodes.gram_is_double ? prototype_episode<double, double>(Team{}, p, e, memory)
                              : prototype_episode<float, float>(Team{}, p, e, memory);
}

std::size_t knn_memory(const KnnParams& p) {
    return p.episodes.gram_is_double ? knn_bytes<double, Team>(p) : knn_bytes<float, Team>(p);
}

void knn(const KnnParams& p, std::int64_t e, void* memory) {
    p.episodes.gram_is_double ? knn_episode<double>(Team{}, p, e, memory) : knn_episode<float>(Team{}, p, e, memory);
}

std::size_t neighbours_memory(const NeighboursParams& p) {
    return neighbours_bytes<Team>(p);
}

void neighbours(const NeighboursParams& p, std::int64_t item, void* memory) {
    neighbours_item(Team{}, p, item, memory);
}

// f(type of the embeddings' numbers)
template <class F>
auto by_number(fastxfer::Number number, const F& f) {
    switch (number) {
        case fastxfer::Number::float16:
            return f(Half{});
        case fastxfer::Number::float32:
            return f(float{});
        default:
            return f(double{});
    }
}

std::size_t products_memory(const ProductsParams& p) {
    return by_number(p.images.number, [&](auto stored) { return products_bytes<decltype(stored)>(p); });
}

void products(const ProductsParams& p, std::int64_t e, void* memory) {
    by_number(p.images.number, [&](auto stored) { products_episode<decltype(stored)>(p, e, memory); });
}

std::size_t weights_memory(const WeightsParams& p) {
    return by_number(p.images.number, [&](auto stored) { return weights_bytes<decltype(stored)>(p); });
}

void weights(const WeightsParams& p, std::int64_t e, void* memory) {
    by_number(p.images.number, [&](auto stored) { weights_episode<decltype(stored)>(p, e, memory); });
}

void logits_few(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    p.is_double ? skinny_logits<double>(p, first, last) : skinny_logits<float>(p, first, last);
}

void gradient_few(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    p.is_double ? skinny_gradient<double>(p, first, last) : skinny_gradient<float>(p, first, last);
}

std::size_t examine_memory(const ExamineParams& p) {
    return scratch_bytes(p);
}

void examine(const ExamineParams& p, std::int64_t block, void* memory) {
    by_number(p.number, [&](auto stored) { examine_rows<decltype(stored)>(p, block, memory); });
}

std::size_t centre_memory(const CentreParams& p) {
    return scratch_bytes(p);
}

void centre_one(const CentreParams& p, std::int64_t i, void* memory) {
    by_number(p.number, [&](auto stored) {
        using Stored = decltype(stored);
        if (p.out == nullptr) return centre_row<Stored, void>(p, i, memory);
        p.out_is_double ? centre_row<Stored, double>(p, i, memory) : centre_row<Stored, float>(p, i, memory);
    });
}

}  // namespace
}  // namespace FX_NAMESPACE

#define FX_TEXT_(x) #x
#define FX_TEXT(x) FX_TEXT_(x)

namespace fastxfer {
extern const CpuKernels FX_KERNELS;
const CpuKernels FX_KERNELS = {
    FX_TEXT(FX_KERNELS),        FX_NAMESPACE::logistic_memory,
    FX_NAMESPACE::logistic,     FX_NAMESPACE::ridge_memory,
    FX_NAMESPACE::ridge,        FX_NAMESPACE::prototype_memory,
    FX_NAMESPACE::prototype,    FX_NAMESPACE::knn_memory,
    FX_NAMESPACE::knn,          FX_NAMESPACE::neighbours_memory,
    FX_NAMESPACE::neighbours,   FX_NAMESPACE::products_memory,
    FX_NAMESPACE::products,     FX_NAMESPACE::weights_memory,
    FX_NAMESPACE::weights,      FX_NAMESPACE::logits_few,
    FX_NAMESPACE::gradient_few, FX_NAMESPACE::examine_memory,
    FX_NAMESPACE::examine,      FX_NAMESPACE::centre_memory,
    FX_NAMESPACE::centre_one,
};
}  // namespace fastxfer
