// A whole call of attention, tile after tile, with what the caller asked to see or has replaced.

// Where a row of scores or probabilities lies in a [batch, head, query] tensor.
inline int64_t cube_row(const AttentionTile& t, int64_t row) {
  const auto& c = t.call;
  const int64_t head = t.kv_head * t.group + row % t.group, query = t.first + row / t.group;
  return (t.batch * c.heads + head) * c.n_query + query;
}

inline void keep_rows(const AttentionTile& t, float* cube, float hidden) {
  const int32_t* key = t.seen.key + t.all.first;
  for (int64_t row = 0; row < t.rows; ++row) {
    float* to = cube + cube_row(t, row) * t.call.n_key;
    const float* s = lane_of(t, row);
    if (t.keys < t.call.n_key) fill(to, t.call.n_key, hidden);
    for (int64_t j = 0; j < t.keys; ++j) to[key[j]] = s[j * Lanes::W];
  }
}

inline void take_rows(const AttentionTile& t, const float* cube) {
  fill(t.s, t.vectors * t.step * Lanes::W, 0.0f);
  for (int64_t row = 0; row < t.rows; ++row) {
    const float* from = cube + cube_row(t, row) * t.call.n_key;
    float* s = lane_of(t, row);
    for (int64_t j = 0; j < t.keys; ++j) s[j * Lanes::W] = from[t.seen.key[j]];
  }
}

// A replaced pattern may reach any key: a query's range is where a weight of it is not 0.
inline void find_ranges(AttentionTile& t) {
  for (int64_t query = 0; query < t.queries; ++query) {
    int32_t first = int32_t(t.keys), last = 0;
    for (int64_t row = query * t.group; row < (query + 1) * t.group; ++row) {
      const float* p = lane_of(t, row);
      int32_t low = 0, high = int32_t(t.keys);
      while (low < first && p[low * Lanes::W] == 0) ++low;
      while (high > last && p[(high - 1) * Lanes::W] == 0) --high;
      first = low < first ? low : first;
      last = high > last ? high : last;
    }
    t.range[query] = first < last ? Ranks{first, last} : Ranks{0, 0};
  }
}

inline void read_sinks(const AttentionTile& t) {
  fill(t.sink, t.vectors * Lanes::W, 0.0f);
  for (int64_t row = 0; row < t.rows; ++row)
    t.sink[row] = t.call.sinks[t.kv_head * t.group + row % t.group];
}

template <class T>
void write_z(const AttentionTile& t) {
  const auto& c = t.call;
  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t head = t.kv_head * t.group + row % t.group, query = t.first + row / t.group;
    T* to = static_cast<T*>(c.z) + ((t.batch * c.n_query + query) * c.heads + head) * c.d_head;
    for (int64_t i = 0; i < c.d_head; ++i) narrow(t.z[row * t.width + i], to[i]);
  }
}

template <class T>
void find_pattern(const AttentionTile& t) {
  const auto& c = t.call;
  if (c.pattern_in) return take_rows(t, c.pattern_in);
  c.scores_in ? take_rows(t, c.scores_in) : score<T>(t);
  if (c.scores) keep_rows(t, c.scores, HIDDEN);
  if (!c.pattern && !c.sink && !c.z) return;
  read_sinks(t);
  soften(t);
  if (c.pattern) keep_rows(t, c.pattern, 0.0f);
  for (int64_t row = 0; c.sink && row < t.rows; ++row) c.sink[cube_row(t, row)] = t.sink[row];
}

template <class T>
void run_tile(AttentionTile& t) {
  find_pattern<T>(t);
  if (!t.call.z) return;
  if (!t.call.q) find_ranges(t);
  mix_values<T>(t);
  write_z<T>(t);
}

inline void look_around(AttentionTile& t) {
  const auto& c = t.call;
  int32_t first = int32_t(c.n_key), last = 0;
  for (int64_t query = 0; query < t.queries && c.q; ++query) {
    const int64_t pos = c.query_pos[t.batch * c.n_query + t.first + query];
    const Ranks seen = t.range[query] = gw::seen_by(pos, c.window, t.seen);
    if (seen.first == seen.last) continue;
    first = seen.first < first ? seen.first : first;
    last = seen.last > last ? seen.last : last;
  }
  if (!c.q) first = 0, last = int32_t(c.n_key);  // scores or patterns may reach any key
  t.all = first < last ? Ranks{first, last} : Ranks{0, 0};
  t.keys = t.all.last - t.all.first;
  t.step = t.keys + KEY_TILE;
}

// False when the memory cannot be had.
inline bool lay_out(AttentionTile& t) {
  const int64_t d = t.call.d_head, lanes = t.vectors * Lanes::W;
  t.width = (d + Lanes::W - 1) / Lanes::W * Lanes::W;
  const int64_t sizes[] = {lanes * d, lanes * t.step, t.rows * t.width,
                           (KEY_GROUP + KEY_TILE) * t.width, lanes};
  float** parts[] = {&t.q, &t.s, &t.z, &t.block, &t.sink};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + 15) / 16 * 16;
  float* at = static_cast<float*>(gw::scratch(total * sizeof(float)));
  for (int i = 0; at && i < 5; at += (sizes[i++] + 15) / 16 * 16) *parts[i] = at;
  return at;
}

// Queries of a tile. More of them share what is read of keys and values, as long as their scores
// stay in the second cache; four megabytes of scores are the most, unless one query needs more.
inline int64_t queries_a_tile(const GwAttention& c) {
  constexpr int64_t NEAR = 100 << 10, MOST = 1 << 20;  // scores
  const int64_t group = c.heads / c.kv_heads, whole = ROWS_A_TILE / group;
  const bool trimmed = c.q && c.window < c.n_key - KEY_GROUP;
  const int64_t span = group * (trimmed ? c.window + KEY_GROUP : c.n_key) + 1;
  int64_t size = whole * span <= NEAR ? whole : whole / 2;
  size = size < MOST / span ? size : MOST / span;
  return size < 1 ? 1 : size < c.n_query ? size : c.n_query;
}

// The last queries see the most keys: they are the first jobs, so that threads end together.
inline bool attention_job(const GwAttention& c, const SeenKeys* seen, int64_t size, int64_t job) {
  const int64_t tiles = (c.n_query + size - 1) / size, batch = job / c.kv_heads % c.batch;
  const int64_t first = (tiles - 1 - job / c.kv_heads / c.batch) * size;
  const int64_t queries = size < c.n_query - first ? size : c.n_query - first;
  AttentionTile t{c, seen[batch], batch, job % c.kv_heads, first, queries};
  t.group = c.heads / c.kv_heads;
  t.rows = queries * t.group;
  t.vectors = (t.rows + Lanes::W - 1) / Lanes::W;
  look_around(t);
  if (!lay_out(t)) return false;
  c.dtype == GW_BF16 ? run_tile<uint16_t>(t) : run_tile<float>(t);
  return true;
}

int32_t attention(const GwAttention* call) {
  const GwAttention& c = *call;
  const SeenKeys* seen = gw::rank_keys(c.key_pos, c.batch, c.n_key);
  const int64_t size = queries_a_tile(c), tiles = (c.n_query + size - 1) / size;
  bool failed[1] = {false};  // only ever set to true
  parallel(c.batch * c.kv_heads * tiles, [&](int64_t job, int) {
    if (!attention_job(c, seen, size, job)) __atomic_store_n(failed, true, __ATOMIC_RELAXED);
  });
  return failed[0];
}
