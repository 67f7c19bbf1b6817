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

void products(const ProductsParams& p, std::int64_t e) {
    p.is_double ? products_episode<double>(p, e) : products_episode<float>(p, e);
}

std::size_t weights_memory(const WeightsParams& p) {
    return p.is_double ? weights_bytes<double>(p) : weights_bytes<float>(p);
}

void weights(const WeightsParams& p, std::int64_t e, void* memory) {
    p.is_double ? weights_episode<double>(p, e, memory) : weights_episode<float>(p, e, memory);
}

void logits_few(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    p.is_double ? skinny_logits<double>(p, first, last) : skinny_logits<float>(p, first, last);
}

void gradient_few(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    p.is_double ? skinny_gradient<double>(p, first, last) : skinny_gradient<float>(p, first, last);
}

void examine(const ExamineParams& p, std::int64_t block) {
    p.is_double ? examine_rows<double>(p, block) : examine_rows<float>(p, block);
}

void centre_one(const CentreParams& p, std::int64_t i) {
    if (p.is_double) {
        p.out_is_double ? centre_row<double, double>(p, i) : centre_row<double, float>(p, i);
    } else {
        p.out_is_double ? centre_row<float, double>(p, i) : centre_row<float, float>(p, i);
    }
}

}  // namespace
}  // namespace FX_NAMESPACE

#define FX_TEXT_(x) #x
#define FX_TEXT(x) FX_TEXT_(x)

namespace fastxfer {
extern const CpuKernels FX_KERNELS;
const CpuKernels FX_KERNELS = {
    FX_TEXT(FX_KERNELS),
    FX_NAMESPACE::logistic_memory,
    FX_NAMESPACE::logistic,
    FX_NAMESPACE::ridge_memory,
    FX_NAMESPACE::ridge,
    FX_NAMESPACE::prototype_memory,
    FX_NAMESPACE::prototype,
    FX_NAMESPACE::knn_memory,
    FX_NAMESPACE::knn,
    FX_NAMESPACE::neighbours_memory,
    FX_NAMESPACE::neighbours,
    FX_NAMESPACE::products,
    FX_NAMESPACE::weights_memory,
    FX_NAMESPACE::weights,
    FX_NAMESPACE::logits_few,
    FX_NAMESPACE::gradient_few,
    FX_NAMESPACE::examine,
    FX_NAMESPACE::centre_one,
};
}  // namespace fastxfer
