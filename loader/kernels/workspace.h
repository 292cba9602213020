// Memory of one encoding thread: arrays that live until the chunk is done, and text. Host only.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "lanes.cuh"

namespace encode {

// Hands out uninitialised arrays and forgets all of them at once; its blocks serve the next chunk again. Objects in it are never destroyed.
class Workspace {
  public:
    template <class T> T* take(u64 n) { return (T*)bytes(n * sizeof(T)); }

    template <class T, class... Arguments> T* make(Arguments&&... arguments) { return new (bytes(sizeof(T))) T(std::forward<Arguments>(arguments)...); }

    template <class T> T* copy(const T* values, u64 n) {
        T* made = take<T>(n);
        if (n) __builtin_memcpy(made, values, n * sizeof(T));
        return made;
    }

    struct Mark {
        u64 block, used;
    };

    Mark mark() const {
#if defined(__SANITIZE_ADDRESS__)
        return {blocks_.size(), 0};
#else
        return {block_, used_};
#endif
    }

    // Forgets what was taken since.
    void release(const Mark& mark) {
#if defined(__SANITIZE_ADDRESS__)
        blocks_.resize(mark.block);
#else
        block_ = mark.block;
        used_ = mark.used;
#endif
    }

    void reset() { release({0, 0}); }

  private:
    static constexpr u64 FIRST_BYTES = 64 << 10, ALIGNMENT = 32, SLACK = 64;  // loops read and write whole registers past an end

    struct Free {
        void operator()(u8* at) const { std::free(at); }
    };

    struct Block {
        std::unique_ptr<u8, Free> at;
        u64 num_bytes = 0;
    };

    u8* bytes(u64 wanted) {
        wanted = (wanted + SLACK + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
#if defined(__SANITIZE_ADDRESS__)
        blocks_.push_back(allocate(wanted));  // each array alone, so that the sanitizer sees its end
        return blocks_.back().at.get();
#else
        while (block_ < blocks_.size() && used_ + wanted > blocks_[block_].num_bytes) ++block_, used_ = 0;
        if (block_ == blocks_.size()) {
            const u64 twice = blocks_.empty() ? FIRST_BYTES : 2 * blocks_.back().num_bytes;
            blocks_.push_back(allocate(twice > wanted ? twice : wanted));
        }
        u8* at = blocks_[block_].at.get() + used_;
        used_ += wanted;
        return at;
#endif
    }

    static Block allocate(u64 num_bytes) {
        u8* at = (u8*)std::aligned_alloc(ALIGNMENT, num_bytes);
        if (at == nullptr) throw std::bad_alloc();
        return {std::unique_ptr<u8, Free>(at), num_bytes};
    }

    std::vector<Block> blocks_;
    u64 block_ = 0, used_ = 0;
};

// 1234567 as 1,234,567.
inline std::string grouped(u64 number) {
    std::string digits = std::to_string(number);
    for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
    return digits;
}

}  // namespace encode
