// A balanced k-d tree: every node halves its points at the median of the widest axis of their
// bounding box. Its depth is fixed by the number of points, whatever their distribution (clusters,
// outliers, lines, duplicates), which a uniform grid or Morton cells cannot promise.
#include "knn.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"

namespace simple_knn {
namespace {

constexpr int kLeafPoints = 16;  // most points in a leaf
constexpr std::int64_t kMinPointsPerThread = 2048;
constexpr int kMaxDepth = 32;

struct Item {
  float position[3];
  std::int32_t index;
};

struct Box {
  float low[3], high[3];
};

inline float squared_norm(float x, float y, float z) { return x * x + y * y + z * z; }

// How far `q` lies before `low` or behind `high`; rounds monotonically, so it never exceeds the
// distance to a point between them.
inline float gap(float q, float low, float high) {
  return std::max(std::max(low - q, q - high), 0.0f);
}

inline float squared_distance(const Box& box, const float* q) {
  return squared_norm(gap(q[0], box.low[0], box.high[0]), gap(q[1], box.low[1], box.high[1]),
                      gap(q[2], box.low[2], box.high[2]));
}

Box bounding_box(const Item* begin, const Item* end) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  Box box{{inf, inf, inf}, {-inf, -inf, -inf}};
  for (const Item* item = begin; item != end; ++item)
    for (int axis = 0; axis < 3; ++axis) {
      box.low[axis] = std::min(box.low[axis], item->position[axis]);
      box.high[axis] = std::max(box.high[axis], item->position[axis]);
    }
  return box;
}

int widest_axis(const Box& box) {
  int widest = 0;
  for (int axis = 1; axis < 3; ++axis)
    if (box.high[axis] - box.low[axis] > box.high[widest] - box.low[widest]) widest = axis;
  return widest;
}

// The k best candidates so far, ascending, kept in the query's rows of the output.
struct Neighbours {
  float* dist2;
  std::int64_t* index;
  std::int64_t k;

  float worst() const { return dist2[k - 1]; }

  void insert(float candidate, std::int64_t candidate_index) {
    std::int64_t slot = k - 1;
    for (; slot > 0 && dist2[slot - 1] > candidate; --slot) {
      dist2[slot] = dist2[slot - 1];
      index[slot] = index[slot - 1];
    }
    dist2[slot] = candidate;
    index[slot] = candidate_index;
  }
};

int workers_for(std::int64_t count, int threads) {
  const std::int64_t useful = std::max<std::int64_t>(1, count / kMinPointsPerThread);
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
}

class Tree {
 public:
  Tree(const float* points, std::int64_t count, int threads);
  std::int64_t leaves() const { return std::int64_t{1} << depth_; }
  // Writes the rows of every point in the leaf.
  void query_leaf(std::int64_t leaf, std::int64_t k, float* dist2, std::int64_t* index) const;

 private:
  void split_level(int level, int threads);
  void split(std::int64_t node, int level);
  void search(std::int64_t self, std::int64_t own_leaf, Neighbours& best) const;
  void scan_leaf(std::int64_t leaf, std::int64_t self, const float* q, Neighbours& best) const;
  std::int64_t first_leaf() const { return leaves() - 1; }
  // First point of a node: nodes of a level divide the points evenly, up to rounding.
  std::int64_t begin(std::int64_t node, int level) const {
    return (count_ * (node + 1 - (std::int64_t{1} << level))) >> level;
  }

  std::int64_t count_;
  int depth_ = 0;
  std::vector<Item> items_;           // in the order of the leaves
  std::vector<float> x_, y_, z_;      // the same, for the leaf scan
  std::vector<Box> boxes_;            // children of node n are 2n + 1 and 2n + 2
};

Tree::Tree(const float* points, std::int64_t count, int threads) : count_(count), items_(count) {
  while (count > (std::int64_t{kLeafPoints} << depth_)) ++depth_;
  for (std::int64_t i = 0; i < count; ++i)
    items_[i] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]},
                 static_cast<std::int32_t>(i)};
  boxes_.resize(2 * leaves() - 1);
  for (int level = 0; level <= depth_; ++level) split_level(level, threads);
  x_.resize(count), y_.resize(count), z_.resize(count);
  for (std::int64_t i = 0; i < count; ++i) {
    x_[i] = items_[i].position[0];
    y_[i] = items_[i].position[1];
    z_[i] = items_[i].position[2];
  }
}

void Tree::split_level(int level, int threads) {
  const std::int64_t nodes = std::int64_t{1} << level;
  const int workers =
      static_cast<int>(std::min<std::int64_t>(workers_for(count_, threads), nodes));
  run_workers(workers, [&](int worker) {
    for (std::int64_t i = nodes * worker / workers; i < nodes * (worker + 1) / workers; ++i)
      split(nodes - 1 + i, level);
  });
}

// Bounds the points of a node and, above the leaves, parts them at the median.
void Tree::split(std::int64_t node, int level) {
  Item* first = items_.data() + begin(node, level);
  Item* last = items_.data() + begin(node + 1, level);
  const Box box = bounding_box(first, last);
  boxes_[node] = box;
  if (level == depth_) return;
  const int axis = widest_axis(box);
  Item* middle = items_.data() + begin(2 * node + 2, level + 1);
  std::nth_element(first, middle, last, [axis](const Item& a, const Item& b) {
    return a.position[axis] < b.position[axis];
  });
}

void Tree::scan_leaf(std::int64_t leaf, std::int64_t self, const float* q,
                     Neighbours& best) const {
  const std::int64_t first = begin(leaf, depth_);
  const int size = static_cast<int>(begin(leaf + 1, depth_) - first);
  float distances[kLeafPoints];
  for (int i = 0; i < size; ++i)
    distances[i] = squared_norm(x_[first + i] - q[0], y_[first + i] - q[1], z_[first + i] - q[2]);
  for (int i = 0; i < size; ++i)
    if (distances[i] < best.worst() && first + i != self)
      best.insert(distances[i], items_[first + i].index);
}

// Nearer children first; the point's own leaf, scanned before all, gives a tight first bound.
void Tree::search(std::int64_t self, std::int64_t own_leaf, Neighbours& best) const {
  struct Entry {
    std::int64_t node;
    float dist2;
  };
  const float* q = items_[self].position;
  scan_leaf(own_leaf, self, q, best);
  Entry stack[kMaxDepth + 1];
  int top = 0;
  stack[top++] = {0, 0.0f};
  while (top > 0) {
    Entry entry = stack[--top];
    while (entry.dist2 < best.worst() && entry.node < first_leaf()) {
      Entry near{2 * entry.node + 1, squared_distance(boxes_[2 * entry.node + 1], q)};
      Entry far{2 * entry.node + 2, squared_distance(boxes_[2 * entry.node + 2], q)};
      if (far.dist2 < near.dist2) std::swap(near, far);
      if (far.dist2 < best.worst()) stack[top++] = far;
      entry = near;
    }
    if (entry.dist2 < best.worst() && entry.node != own_leaf)
      scan_leaf(entry.node, self, q, best);
  }
}

void Tree::query_leaf(std::int64_t leaf, std::int64_t k, float* dist2,
                      std::int64_t* index) const {
  const std::int64_t node = first_leaf() + leaf;
  for (std::int64_t self = begin(node, depth_); self < begin(node + 1, depth_); ++self) {
    const std::int64_t row = items_[self].index * k;
    Neighbours best{dist2 + row, index + row, k};
    std::fill_n(best.dist2, k, std::numeric_limits<float>::infinity());
    std::fill_n(best.index, k, std::int64_t{-1});
    search(self, node, best);
  }
}

}  // namespace

std::int64_t first_invalid(const float* points, std::int64_t count) {
  for (std::int64_t i = 0; i < 3 * count; ++i)
    if (!(std::abs(points[i]) <= kMaxCoordinate)) return i / 3;
  return -1;
}

void nearest_neighbours(const float* points, std::int64_t count, std::int64_t k, int threads,
                        float* dist2, std::int64_t* index) {
  if (count == 0) return;
  const Tree tree(points, count, threads);
  const int workers = workers_for(count, threads);
  run_workers(workers, [&](int worker) {
    const std::int64_t end = tree.leaves() * (worker + 1) / workers;
    for (std::int64_t leaf = tree.leaves() * worker / workers; leaf < end; ++leaf)
      tree.query_leaf(leaf, k, dist2, index);
  });
}

}  // namespace simple_knn
