#include "seen_keys.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace gw {
namespace {

struct Row {
  std::vector<int32_t> key, start;
  std::vector<int64_t> pos;
  int32_t real = 0;
};

bool in_order(const int64_t* pos, int64_t n) {
  bool ascending = !n || pos[0] >= 0;
  for (int64_t j = 1; j < n; ++j) ascending &= pos[j - 1] <= pos[j];
  return ascending;
}

void rank(const int64_t* pos, int64_t n, Row& row) {
  row.key.resize(n);
  row.pos.resize(n);
  std::iota(row.key.begin(), row.key.end(), 0);
  if (!in_order(pos, n)) {
    const auto place = [pos](int32_t j) { return pos[j] < 0 ? INT64_MAX : pos[j]; };
    std::stable_sort(row.key.begin(), row.key.end(),
                     [&](int32_t a, int32_t b) { return place(a) < place(b); });
  }
  row.real = 0;
  for (int64_t j = 0; j < n; ++j) {
    row.pos[j] = pos[row.key[j]];
    row.real += row.pos[j] >= 0;
  }
}

// Padding, and keys that share a position, count at most 64 a group.
void group(Row& row) {
  const int32_t n = int32_t(row.key.size());
  row.start.assign(1, 0);
  for (int32_t j = 1; j < n; ++j) {
    const bool apart = row.pos[j] / KEY_GROUP != row.pos[j - 1] / KEY_GROUP;
    if (apart || j == row.real || j - row.start.back() == KEY_GROUP) row.start.push_back(j);
  }
  row.start.push_back(n);
}

}  // namespace

const SeenKeys* rank_keys(const int64_t* pos, int64_t batch, int64_t n_key) {
  thread_local std::vector<Row> rows;
  thread_local std::vector<SeenKeys> seen;
  rows.resize(batch);
  seen.resize(batch);
  for (int64_t b = 0; b < batch; ++b) {
    Row& row = rows[b];
    rank(pos + b * n_key, n_key, row);
    group(row);
    seen[b] = {row.key.data(), row.pos.data(), row.start.data(), int32_t(row.start.size() - 1),
               row.real};
  }
  return seen.data();
}

Ranks seen_by(int64_t query, int64_t window, const SeenKeys& seen) {
  if (query < 0) return {0, 0};
  const int64_t* end = seen.pos + seen.real;
  const int64_t* first = std::upper_bound(seen.pos, end, query - window);
  const int64_t* last = std::upper_bound(first, end, query);
  if (first == last) return {0, 0};
  return {int32_t(first - seen.pos), int32_t(last - seen.pos)};
}

int32_t group_of(int32_t rank, const SeenKeys& seen) {
  const int32_t* end = seen.start + seen.groups;
  return int32_t(std::upper_bound(seen.start, end, rank) - seen.start) - 1;
}

}  // namespace gw
