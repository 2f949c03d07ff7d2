// Which keys the queries of a batch row see, and where their sums begin anew.
//
// Keys are ranked by position, padding (position < 0) behind all others. A query at position p sees
// the ranks whose positions lie in (p - window, p]: one range, whatever padding, chunking or a
// trimmed cache did to the order in memory. Sums over keys run in rank order, in groups of 64
// positions counted from 0, so that a group begins at the same key whichever keys are still cached.
#pragma once

#include <cstdint>

namespace gw {

constexpr int KEY_GROUP = 64;

// Ranks first ... last - 1.
struct Ranks {
  int32_t first, last;
};

struct SeenKeys {
  const int32_t* key;    // [n_key] index of the key at each rank
  const int64_t* pos;    // [n_key] its position
  const int32_t* start;  // [groups + 1] first rank of each group, then n_key
  int32_t groups;
  int32_t real;  // ranks before the padding
};

// Of every batch row of pos[batch, n_key]; valid until this thread's next call.
const SeenKeys* rank_keys(const int64_t* pos, int64_t batch, int64_t n_key);

Ranks seen_by(int64_t query, int64_t window, const SeenKeys& seen);

// The group that `rank` lies in.
int32_t group_of(int32_t rank, const SeenKeys& seen);

}  // namespace gw
