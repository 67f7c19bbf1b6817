// Memory of one episode, handed out piece by piece from one block. With no block it only counts, so the same lines that
// lay the pieces out say how much they need.
#pragma once

#include <cstddef>
#include <cstdint>

#include "team.h"

namespace FX_NAMESPACE {

class Workspace {
  public:
    FX_FUNCTION explicit Workspace(void* block) : block_(static_cast<char*>(block)) {}

    template <class T>
    FX_FUNCTION T* take(std::int64_t count) {
        T* piece = reinterpret_cast<T*>(block_ ? block_ + used_ : nullptr);
        used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

    FX_FUNCTION std::size_t used() const { return used_; }

  private:
    char* block_;
    std::size_t used_ = 0;
};

// m numbers and room for one more, padded to whole vectors.
template <class Team, class Real>
FX_FUNCTION int padded(int m) {
    constexpr int width = Team::template width<Real>;
    return (m + width - 1) / width * width;
}

}  // namespace FX_NAMESPACE
